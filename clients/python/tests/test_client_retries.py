"""Which calls are repeated, and with what."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
import pytest

from servers import FailingServer, Failure, failing
from taskservice.v1.task_service_pb2 import CreateTaskRequest
from taskservice_client import (
    ClosedClientError,
    DeadlineExceeded,
    EtagMismatch,
    ServiceUnavailable,
    TaskClient,
    TaskNotDeleted,
    TaskNotFound,
    TransactionConflict,
)

UNAVAILABLE = Failure(grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE", 0.01)
CANCELLED = Failure(grpc.StatusCode.CANCELLED)
EXHAUSTED = Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMIT_EXCEEDED", 0.01)
CONFLICT = Failure(grpc.StatusCode.ABORTED, "TRANSACTION_CONFLICT", 0.01)
NOT_FOUND = Failure(grpc.StatusCode.NOT_FOUND, "TASK_NOT_FOUND")
NOT_DELETED = Failure(grpc.StatusCode.ALREADY_EXISTS, "TASK_NOT_DELETED")
DRAINING = Failure(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN", 0.01)
SLOW = Failure(grpc.StatusCode.DEADLINE_EXCEEDED, "STATEMENT_TIMEOUT")

STALE = Failure(grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
PAUSE_SECONDS = 0.5
PAUSE = CONFLICT._replace(retry_after=PAUSE_SECONDS)

MORE_THAN_GRPC_REPEATS = 6
ID = "01a21b10-defa-776c-b031-167c29da6c00"

Call = Callable[[TaskClient], object]
CALLS: dict[str, Call] = {
    "GetTask": lambda client: client.get(ID),
    "CreateTask": lambda client: client.create(title="a task"),
    "UpdateTask": lambda client: client.update(ID, title="a task"),
    "DeleteTask": lambda client: client.delete(ID),
    "UndeleteTask": lambda client: client.undelete(ID),
}


@contextmanager
def calling(
    *failures: Failure, timeout: float = 20.0
) -> Iterator[tuple[TaskClient, FailingServer]]:
    """Yield a client and the failing server that it calls."""
    with failing(*failures) as (address, server), TaskClient(address, timeout=timeout) as client:
        yield client, server


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize("failure", [UNAVAILABLE, CANCELLED], ids=lambda each: each.code.name)
def test_a_call_survives_more_failures_than_grpc_repeats(failure: Failure, method: str) -> None:
    with calling(*[failure] * MORE_THAN_GRPC_REPEATS) as (client, server):
        CALLS[method](client)
    assert [call.method for call in server.received] == [method] * (MORE_THAN_GRPC_REPEATS + 1)


def test_every_attempt_of_a_write_has_the_same_request_id() -> None:
    with calling(*[UNAVAILABLE] * MORE_THAN_GRPC_REPEATS) as (client, server):
        client.create(title="first")
        client.create(title="second")
    ids = [CreateTaskRequest.FromString(call.request).request_id for call in server.received]
    first, second = dict.fromkeys(ids)
    assert ids == [first] * (MORE_THAN_GRPC_REPEATS + 1) + [second]
    assert [call.metadata["x-request-id"] for call in server.received] == ids


def test_an_undeletion_of_a_task_that_is_not_deleted_fails() -> None:
    with calling(NOT_DELETED) as (client, _), pytest.raises(TaskNotDeleted):
        client.undelete(ID)


def test_a_purge_that_may_have_begun_is_not_repeated() -> None:
    with calling(UNAVAILABLE) as (client, server), pytest.raises(ServiceUnavailable):
        client.purge("deleted_at:*", force=True)
    assert len(server.received) == 1


def test_a_purge_that_conflicts_is_not_repeated() -> None:
    """It has many transactions: those before the conflict are committed."""
    with calling(CONFLICT) as (client, server), pytest.raises(TransactionConflict):
        client.purge("deleted_at:*", force=True)
    assert len(server.received) == 1


@pytest.mark.parametrize("failure", [DRAINING, EXHAUSTED], ids=lambda each: each.reason)
def test_a_purge_that_was_refused_is_repeated(failure: Failure) -> None:
    with calling(failure) as (client, server):
        client.purge("deleted_at:*", force=True)
    assert len(server.received) == 2


def test_a_conflict_of_transactions_is_repeated() -> None:
    with calling(CONFLICT) as (client, server):
        client.update(ID, title="a task")
    assert len(server.received) == 2


@pytest.mark.parametrize("failure", [NOT_FOUND, SLOW], ids=lambda each: each.reason)
def test_a_permanent_error_is_not_repeated(failure: Failure) -> None:
    with calling(failure) as (client, server), pytest.raises((TaskNotFound, DeadlineExceeded)):
        client.get(ID)
    assert len(server.received) == 1


def test_a_failure_that_lasts_is_raised_within_the_timeout() -> None:
    asks_to_wait = Failure(grpc.StatusCode.ABORTED, "TRANSACTION_CONFLICT", 0.9)
    with (
        calling(asks_to_wait, timeout=0.5) as (client, server),
        pytest.raises(TransactionConflict) as raised,
    ):
        client.get(ID)
    assert raised.value.retry_after == pytest.approx(0.9)
    assert len(server.received) == 1


def test_the_read_after_a_stale_etag_has_the_deadline_of_the_update() -> None:
    with calling(PAUSE, STALE) as (client, server), pytest.raises(EtagMismatch) as raised:
        client.update(ID, title="changed", etag="stale", timeout=9)
    assert raised.value.current
    assert server.received[-1].seconds < server.received[0].seconds - PAUSE_SECONDS / 2


def test_the_calls_of_a_mutation_have_one_deadline() -> None:
    with calling(PAUSE) as (client, server):
        client.update(ID, lambda task: task.tags.append("added"), timeout=9)
    assert [call.method for call in server.received] == ["GetTask", "GetTask", "UpdateTask"]
    assert server.received[-1].seconds < server.received[0].seconds - PAUSE_SECONDS / 2


def test_a_call_without_an_answer_ends_at_its_deadline() -> None:
    with TaskClient("127.0.0.1:1", timeout=0.2) as client, pytest.raises(DeadlineExceeded):
        client.get(ID)


def test_a_closed_client_says_so() -> None:
    client = TaskClient("127.0.0.1:1")
    client.close()
    with pytest.raises(ClosedClientError):
        client.get(ID)
