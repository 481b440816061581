"""A write took place on a real service, and its answer is lost: the client repeats it."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from servers import Failure
from taskservice_client import Task, TaskClient, TaskNotDeleted, TaskNotFound
from test_client_tasks import new_tag


class Failed(grpc.RpcError):
    """What gRPC reports when a call ends with this failure."""

    def __init__(self, failure: Failure) -> None:
        self._failure = failure

    def code(self) -> grpc.StatusCode:
        return self._failure.code

    def details(self) -> str:
        return "as told"

    def trailing_metadata(self) -> Any:
        return self._failure.trailers()


LOST = Failure(grpc.StatusCode.UNAVAILABLE)  # The server ended after it executed the call.
REFUSALS = [
    Failure(grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"),
    Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMIT_EXCEEDED", 0.01),
    Failure(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN", 0.01),
    Failure(grpc.StatusCode.ABORTED, "TRANSACTION_CONFLICT", 0.01),
]


class LoseAnswers(grpc.UnaryUnaryClientInterceptor):
    """Drop the first answer to a method, or refuse its first call."""

    def __init__(self) -> None:
        self.methods: set[str] = set()
        self.refusal: Failure | None = None

    def intercept_unary_unary(
        self, continuation: Callable[..., Any], details: Any, request: Any
    ) -> Any:
        method = details.method.rpartition("/")[2]
        if method not in self.methods:
            return continuation(details, request)
        self.methods.remove(method)
        if not self.refusal:
            continuation(details, request)
        raise Failed(self.refusal or LOST)


@pytest.fixture
def lost() -> LoseAnswers:
    return LoseAnswers()


@pytest.fixture
def client(address: str, lost: LoseAnswers) -> Iterator[TaskClient]:
    tokens = map(str, itertools.count())
    with TaskClient(address, token=lambda: next(tokens), interceptors=[lost]) as client:
        yield client
    assert not lost.methods, "the answer was not lost"


def test_one_task_is_created(client: TaskClient, lost: LoseAnswers) -> None:
    tag = new_tag()
    lost.methods = {"CreateTask"}
    task = client.create(title="a task", tags=[tag])
    assert [each.id for each in client.list(f"tags:{tag}")] == [task.id]


def test_an_update_with_an_etag_succeeds(client: TaskClient, lost: LoseAnswers) -> None:
    """The etag that the update replaced is not a mismatch."""
    task = client.create(title="a task")
    lost.methods = {"UpdateTask"}
    assert client.update(task.id, title="changed", etag=task.etag).title == "changed"
    assert len(list(client.history(task.id))) == 2


def test_tasks_are_created_once_by_a_batch(client: TaskClient, lost: LoseAnswers) -> None:
    tag = new_tag()
    lost.methods = {"BatchCreateTasks"}
    tasks = client.create_many([Task(title="a task", tags=[tag])] * 3)
    assert {each.id for each in client.list(f"tags:{tag}")} == {task.id for task in tasks}


@pytest.mark.parametrize("with_etag", [False, True])
def test_a_deletion_returns_the_deleted_task(
    client: TaskClient, lost: LoseAnswers, with_etag: bool
) -> None:
    task = client.create(title="a task")
    lost.methods = {"DeleteTask"}
    deleted = client.delete(task.id, etag=task.etag if with_etag else "")
    assert deleted == client.get(task.id)
    assert deleted.HasField("deleted_at")


def test_a_batch_of_deletions_returns_the_deleted_tasks(
    client: TaskClient, lost: LoseAnswers
) -> None:
    ids = [client.create(title="a task").id for _ in range(3)]
    lost.methods = {"BatchDeleteTasks"}
    deleted = client.delete_many(ids)
    assert [task.id for task in deleted] == ids
    assert all(task.HasField("deleted_at") for task in deleted)


def test_an_undeletion_returns_the_task(client: TaskClient, lost: LoseAnswers) -> None:
    task = client.create(title="a task")
    client.delete(task.id)
    lost.methods = {"UndeleteTask"}
    assert not client.undelete(task.id).HasField("deleted_at")


def test_a_deletion_that_failed_fails_again(client: TaskClient, lost: LoseAnswers) -> None:
    lost.methods = {"DeleteTask"}
    with pytest.raises(TaskNotFound):
        client.delete(str(uuid.uuid4()))


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda each: each.reason)
def test_a_deleted_task_is_not_found_after_a_refusal(
    client: TaskClient, lost: LoseAnswers, refusal: Failure
) -> None:
    task = client.create(title="a task")
    client.delete(task.id)
    lost.refusal = refusal
    lost.methods = {"DeleteTask", "BatchDeleteTasks"}
    with pytest.raises(TaskNotFound):
        client.delete(task.id)
    with pytest.raises(TaskNotFound):
        client.delete_many([task.id])


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda each: each.reason)
def test_a_task_that_is_not_deleted_is_told_after_a_refusal(
    client: TaskClient, lost: LoseAnswers, refusal: Failure
) -> None:
    task = client.create(title="a task")
    lost.refusal = refusal
    lost.methods = {"UndeleteTask"}
    with pytest.raises(TaskNotDeleted):
        client.undelete(task.id)


def test_a_batch_of_deletions_that_failed_deletes_nothing(
    client: TaskClient, lost: LoseAnswers
) -> None:
    task = client.create(title="kept")
    lost.methods = {"BatchDeleteTasks"}
    with pytest.raises(TaskNotFound):
        client.delete_many([task.id, str(uuid.uuid4())])
    assert not client.get(task.id).HasField("deleted_at")
