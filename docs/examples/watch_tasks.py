"""Follow tasks across restarts of the service, of PostgreSQL, and of this program.

    .venv/bin/python docs/examples/watch_tasks.py 127.0.0.1:50051 watch.token 'priority >= HIGH'

A file holds the token of the last change that was processed. A program that is killed between a
change and its token receives that change again: make processing idempotent, or store the token in
the same transaction as its result.
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

import grpc
from google.rpc.error_details_pb2 import BadRequest
from grpc_status import rpc_status

from taskservice.v1.task_service_pb2 import WatchTasksRequest, WatchTasksResponse
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub

# Temporary: retry with the same token.
RESUMABLE = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
LONGEST_PAUSE_SECONDS = 10.0


def deal_with(change: WatchTasksResponse) -> None:
    """Process a change: print one line."""
    kind = WatchTasksResponse.Type.Name(change.type).removeprefix("TYPE_")
    sys.stdout.write(f"{kind:8} {change.task.id} {change.task.title}\n")
    sys.stdout.flush()


def follow(stub: TaskServiceStub, filter_: str, token_file: Path) -> None:
    """Process every change, beginning with the matching tasks."""
    failures = 0
    while True:
        token = token_file.read_text() if token_file.exists() else ""
        request = WatchTasksRequest(
            filter=filter_, resume_token=token, send_initial_tasks=not token
        )
        try:
            for change in stub.WatchTasks(request, wait_for_ready=True):
                failures = 0
                if change.type != WatchTasksResponse.TYPE_BOOKMARK:
                    deal_with(change)
                if change.resume_token:
                    keep(token_file, change.resume_token)
        except grpc.RpcError as error:
            if token and is_no_longer_good(error):
                token_file.unlink()  # Begin anew: with the tasks as they are, once more.
            elif error.code() not in RESUMABLE:
                raise
        failures += 1
        time.sleep(random.uniform(0, min(LONGEST_PAUSE_SECONDS, 0.1 * 2 ** min(failures, 7))))  # noqa: S311


def is_no_longer_good(error: grpc.RpcError) -> bool:
    """Return whether the token is too old, or encrypted with a key that was rotated.

    Other violations of a request, of a filter for instance, are permanent.
    """
    if error.code() is grpc.StatusCode.OUT_OF_RANGE:
        return True
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    bad_request = BadRequest()
    for detail in status.details if status else ():
        if detail.Unpack(bad_request):
            return all(each.field == "resume_token" for each in bad_request.field_violations)
    return False


def keep(token_file: Path, token: str) -> None:
    """Replace the file atomically."""
    new = token_file.with_suffix(".new")
    new.write_text(token)
    os.replace(new, token_file)


def main() -> None:
    address, token_file, *filter_ = sys.argv[1:]
    # A lost connection is detected within half a minute.
    options = [("grpc.keepalive_time_ms", 20_000), ("grpc.keepalive_timeout_ms", 10_000)]
    with grpc.insecure_channel(address, options=options) as channel:
        follow(TaskServiceStub(channel), " ".join(filter_), Path(token_file))


if __name__ == "__main__":
    main()
