"""`tasks purge` removes what it shows, and says how to continue if the call ends early."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import grpc
import pytest

from cli.conftest import Tasks
from taskservice.v1 import task_service_pb2 as pb
from taskservice_client import TaskClient, TaskNotFound


@pytest.fixture
def tag() -> str:
    """A tag for the tasks of one test, which share the service with others."""
    return uuid4().hex


def test_purge_without_yes_and_terminal_removes_nothing(
    tasks: Tasks, client: TaskClient, tag: str
) -> None:
    task = client.create(title="a deleted task", tags=[tag])
    client.delete(task.id)
    result = tasks("purge", f"tags:{tag}")
    assert result.code == 2
    assert "1 deleted tasks match" in result.errors
    assert "a deleted task" in result.errors
    assert client.get(task.id).HasField("deleted_at")


def test_purge_removes_what_it_shows(tasks: Tasks, client: TaskClient, tag: str) -> None:
    task, kept = client.create(title="a", tags=[tag]), client.create(title="b", tags=[tag])
    client.delete(task.id)
    shown = json.loads(tasks("purge", f"tags:{tag}", "--dry-run", "-o", "json").output)
    assert shown == {"purge_count": 1, "purge_sample": [task.id]}
    assert tasks("purge", f"tags:{tag}", "--yes").code == 0
    with pytest.raises(TaskNotFound):
        client.get(task.id)
    assert client.get(kept.id).id == kept.id


@pytest.fixture
def ending_early(request: pytest.FixtureRequest) -> Iterator[str]:
    """A service whose purge has tasks to remove, and ends with a code."""

    def purge(purge: pb.PurgeTasksRequest, context: grpc.ServicerContext) -> pb.PurgeTasksResponse:
        if purge.force:
            context.abort(request.param, "as told")
        return pb.PurgeTasksResponse(purge_count=2000)

    method = grpc.unary_unary_rpc_method_handler(
        purge,
        request_deserializer=pb.PurgeTasksRequest.FromString,
        response_serializer=pb.PurgeTasksResponse.SerializeToString,
    )
    service = grpc.method_handlers_generic_handler(
        "taskservice.v1.TaskService", {"PurgeTasks": method}
    )
    server = grpc.server(ThreadPoolExecutor(2), handlers=[service])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0).wait()


@pytest.mark.parametrize(
    ("ending_early", "code", "is_partial"),
    [
        (grpc.StatusCode.DEADLINE_EXCEEDED, 6, True),
        (grpc.StatusCode.UNAVAILABLE, 6, True),
        (grpc.StatusCode.PERMISSION_DENIED, 5, False),
    ],
    indirect=["ending_early"],
)
def test_a_purge_that_ends_early_says_how_to_continue(
    tasks: Tasks, ending_early: str, code: int, is_partial: bool
) -> None:
    result = tasks("purge", "deleted_at:*", "--yes", "--address", ending_early)
    assert result.code == code
    advice = "Some tasks may be removed: the same command removes the rest."
    assert (advice in result.errors) is is_partial
