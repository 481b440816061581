"""Requests that are small on the wire and large in memory: none is expanded or kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import jwt
import psutil
import pytest

from taskservice.v1.task_service_pb2 import GetTaskStatsRequest
from tests.support.credentials import SECRET_KEY, claims
from tests.support.errors import fails
from tests.support.service import PATIENCE_SECONDS, ServiceProcess, await_ready, running_service

OURS = "/taskservice.v1.TaskService/"
# What one such request became, when it was parsed, was 160 MB.
ITEMS = 786_432
MIB = 2**20
# For the bytes of all of them, 20 times 1.5 MiB, and some copies. Decoding them would take 120 MiB.
MOST_BYTES = 80 * MIB

EMPTY_ITEMS = b"\x0a\x00" * ITEMS
EMPTY_PATHS = b"\x0a\x00" * (ITEMS - 20_000)


def nested(*tags: int, content: bytes) -> bytes:
    """The content as a field of a field …, by their numbers."""
    for tag in reversed(tags):
        size, length = len(content), b""
        while size > 0x7F:
            length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
        content = bytes([tag << 3 | 2]) + length + bytes([size]) + content
    return content


BOMBS = {
    "BatchCreateTasks": EMPTY_ITEMS,
    "BatchUpdateTasks": nested(1, 2, content=EMPTY_PATHS),
    "BatchGetTasks": EMPTY_ITEMS[: 250 * 1024],
    "UpdateTask": nested(2, content=EMPTY_PATHS[: 250 * 1024]),
    "CreateTask": nested(1, content=b"\x42\x00" * 120_000),
}


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, shared_database_url: str
) -> Iterator[ServiceProcess]:
    with running_service(
        tmp_path_factory.mktemp("service"),
        AUTH_MODE="jwt",
        ENVIRONMENT="staging",
        DATABASE_URL=shared_database_url,
        SECRET_KEY=SECRET_KEY,
        WORKERS="1",
    ) as service:
        await_ready(service.channel())
        yield service


def bearer(name: str = "ann") -> tuple[tuple[str, str], ...]:
    token = jwt.encode(claims(name, iss=None, aud=None), SECRET_KEY, "HS256")
    return (("authorization", f"Bearer {token}"),)


def send(
    channel: grpc.Channel, method: str, body: bytes, metadata: Any = (), times: int = 1
) -> list[Any]:
    call: Any = channel.unary_unary(OURS + method)
    options = {"metadata": metadata, "timeout": PATIENCE_SECONDS}
    return [call.future(body, compression=grpc.Compression.Gzip, **options) for _ in range(times)]


def peak_bytes(service: ServiceProcess) -> int:
    """The most memory that the process ever had."""
    lines = Path(f"/proc/{service.pid}/status").read_text().splitlines()
    (peak,) = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return int(peak) * 1024


def memory_bytes(service: ServiceProcess) -> int:
    return int(psutil.Process(service.pid).memory_info().rss)


@pytest.mark.parametrize("method", BOMBS)
def test_an_unauthenticated_request_is_not_parsed(service: ServiceProcess, method: str) -> None:
    """The answer does not say what is wrong with it."""
    before = memory_bytes(service)
    for call in send(service.channel(), method, BOMBS[method], times=20):
        with fails(grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"):
            call.result()
    assert peak_bytes(service) - before < MOST_BYTES


@pytest.mark.parametrize(
    ("method", "field"),
    [
        ("BatchCreateTasks", "requests"),
        ("BatchUpdateTasks", "requests[0].update_mask.paths"),
        ("BatchGetTasks", "ids"),
        ("UpdateTask", "update_mask.paths"),
        ("CreateTask", "task.tags"),
    ],
)
def test_too_many_items_are_refused_unparsed(
    service: ServiceProcess, method: str, field: str
) -> None:
    before = memory_bytes(service)
    for call in send(service.channel(), method, BOMBS[method], bearer(), times=20):
        try:
            with fails(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST") as failure:
                call.result()
        except AssertionError:
            assert call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # There are enough of them.
        else:
            assert failure.violations == {field: "REPEATED_MAX_ITEMS"}
    assert peak_bytes(service) - before < MOST_BYTES


@pytest.mark.parametrize("metadata", [(), bearer("eve")], ids=["unauthenticated", "authenticated"])
def test_others_are_served_while_such_requests_come(service: ServiceProcess, metadata: Any) -> None:
    calls = send(service.channel(), "BatchCreateTasks", EMPTY_ITEMS, metadata, times=50)
    stats: Any = service.stub().GetTaskStats(
        GetTaskStatsRequest(), metadata=bearer(), timeout=PATIENCE_SECONDS
    )
    assert stats.total == 0
    assert {call.code() for call in calls} <= {
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
