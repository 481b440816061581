"""One caller never takes all threads, nor more than half of the limit of calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import grpc
import jwt
import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from server.settings import Settings
from storage.database import Database
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    BatchGetTasksRequest,
    CreateTaskRequest,
    GetTaskRequest,
    GetTaskStatsRequest,
    ListTaskEventsRequest,
    ListTasksRequest,
    PurgeTasksRequest,
    UpdateTaskRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.credentials import SECRET_KEY, claims
from tests.support.errors import fails
from tests.support.postgres import await_waiting, locked_task, waiting_statements
from tests.support.service import PATIENCE_SECONDS, wait_until
from tests.support.workers import connection, served_port

Connect = Callable[[], TaskServiceStub]
Start = Callable[..., Connect]

THREADS = 4
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.fixture
def start(token_settings: Settings, database: Database, database_url: str) -> Iterator[Start]:
    """Start a service that requires tokens; return a function that opens a connection to it."""
    with ExitStack() as running:

        def start(**changes: object) -> Connect:
            own = token_settings.model_copy(update={"threads_per_worker": THREADS, **changes})
            port = running.enter_context(served_port(own, database_url))
            return lambda: TaskServiceStub(running.enter_context(connection(port)))

        yield start


def token(name: str, **claim: object) -> str:
    return jwt.encode(claims(name, **{"iss": None, "aud": None, **claim}), SECRET_KEY, "HS256")


def shown(credentials: str) -> dict[str, Any]:
    return {"metadata": (("authorization", credentials),), "timeout": PATIENCE_SECONDS}


def spellings(token: str) -> list[str]:
    """The same credentials as ten callers would write them."""
    schemes = ("Bearer", "bearer", "BEARER", "bEaReR", "beareR")
    return [f"{scheme} {token}{end}" for scheme in schemes for end in ("", "=")]


@contextmanager
def stuck(
    stubs: list[TaskServiceStub], url: str, credentials: list[str]
) -> Iterator[tuple[Task, list[Any]]]:
    """Writes of one task, one with each of these credentials; none gets on while this holds."""
    first = shown(f"Bearer {token('owner')}")
    task = stubs[0].CreateTask(CreateTaskRequest(task=Task(title="old")), **first)
    with locked_task(url, task.id):
        request = UpdateTaskRequest(task=Task(id=task.id, title="new"))
        calls: list[Any] = [
            stubs[n % len(stubs)].UpdateTask.future(request, **shown(credential))
            for n, credential in enumerate(credentials)
        ]
        await_waiting(url)
        yield task, calls


def queued_calls() -> float:
    """How many calls wait for a thread in this process."""
    return sum(
        sample.value
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name == "taskservice_server_calls" and sample.labels["state"] == "queued"
    )


def as_bob(stub: TaskServiceStub, task: Task) -> Task:
    return stub.GetTask(GetTaskRequest(id=task.id), **shown(f"Bearer {token('bob')}"))


# Threads.


@pytest.mark.parametrize("connections", [1, 3])
@pytest.mark.parametrize(
    "credentials",
    [[f"Bearer {token('ann')}"] * 12, [f"Bearer {token('ann', jti=str(n))}" for n in range(12)]],
    ids=["one token", "many tokens"],
)
def test_a_principal_never_has_all_threads(
    start: Start, database_url: str, connections: int, credentials: list[str]
) -> None:
    """However many tokens and connections it has. What waits has no thread."""
    connect = start()
    with stuck([connect() for _ in range(connections)], database_url, credentials) as (task, calls):
        await_waiting(database_url, THREADS - 1)
        for _ in range(5):
            assert as_bob(connect(), task).id == task.id
        assert waiting_statements(database_url) == THREADS - 1
    assert {call.result().title for call in calls} == {"new"}


def test_credentials_in_other_spellings_are_one_caller(start: Start, database_url: str) -> None:
    """Whether they are taken or refused, they hold no thread of another."""
    connect = start()
    credentials = spellings(token("ann"))
    with stuck([connect(), connect()], database_url, credentials) as (task, calls):
        await_waiting(database_url, THREADS - 1)
        assert as_bob(connect(), task).id == task.id
        assert waiting_statements(database_url) == THREADS - 1
    for call in calls:
        assert call.code() in {grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED}


def test_a_connection_is_a_caller_where_nothing_is_authenticated(
    start: Start, database_url: str
) -> None:
    """Whatever credentials it makes up."""
    connect = start(auth_mode="none")
    with stuck([connect()], database_url, [f"Bearer {n}" for n in range(12)]) as (task, calls):
        await_waiting(database_url, THREADS - 1)
        assert as_bob(connect(), task).id == task.id
        assert waiting_statements(database_url) == THREADS - 1
    assert {call.result().title for call in calls} == {"new"}


def test_several_callers_use_all_threads(start: Start, database_url: str) -> None:
    connect = start()
    credentials = [f"Bearer {token(name)}" for name in ("ann", "bob") * 6]
    with stuck([connect()], database_url, credentials) as (_, calls):
        await_waiting(database_url, THREADS)
    assert {call.result().title for call in calls} == {"new"}


def test_the_only_thread_is_for_every_caller(start: Start) -> None:
    connect = start(threads_per_worker=1)
    for name in ("ann", "bob"):
        connect().GetTaskStats(GetTaskStatsRequest(), **shown(f"Bearer {token(name)}"))


def test_callers_take_turns(start: Start, database_url: str) -> None:
    """A call does not wait for all those that another caller has sent before it."""
    connect = start(threads_per_worker=1, max_concurrent_calls=64)
    greedy = [f"Bearer {token('ann')}"] * 20
    with capture_logs() as logs:
        with stuck([connect()], database_url, greedy) as (task, calls):
            request = GetTaskRequest(id=task.id)
            modest: Any = connect().GetTask.future(request, **shown(f"Bearer {token('bob')}"))
            wait_until(lambda: queued_calls() == len(greedy), "all but one wait")
        modest.result()
        for call in calls:
            call.result()
    order = [line["principal"] for line in logs if line.get("event") == "call"]
    # Until a call's credentials are verified it waits with its connection: a turn or two more.
    assert order.index("bob") - order.index("ann") <= len(greedy) / 4


# Places.


def test_a_principal_has_half_of_the_places_over_all_its_connections(
    start: Start, database_url: str
) -> None:
    connect = start(threads_per_worker=2, max_concurrent_calls=12)
    stubs, ann = [connect() for _ in range(4)], f"Bearer {token('ann')}"
    for stub in stubs:
        stub.GetTaskStats(GetTaskStatsRequest(), **shown(ann))
    with stuck(stubs, database_url, [ann] * 20) as (task, calls):
        wait_until(lambda: sum(call.done() for call in calls) == 14, "all but six are refused")
        assert as_bob(connect(), task).id == task.id
        for call in [call for call in calls if call.done()]:
            with fails(EXHAUSTED, "TOO_MANY_CALLS_OF_CALLER"):
                call.result()


def test_credentials_that_were_never_good_count_as_their_connection(
    start: Start, database_url: str
) -> None:
    """Made up, or merely new: a caller cannot make itself many."""
    connect = start(threads_per_worker=1, max_concurrent_calls=6)
    owner, liar = connect(), connect()
    with stuck([owner], database_url, [f"Bearer {token('owner')}"]) as (task, _):
        calls: list[Any] = [
            liar.GetTask.future(GetTaskRequest(id=task.id), **shown(f"Bearer {n}"))
            for n in range(20)
        ]
        wait_until(lambda: sum(call.done() for call in calls) == 17, "three have places")
        for call in [call for call in calls if call.done()]:
            with fails(EXHAUSTED, "TOO_MANY_CALLS_OF_CALLER"):
                call.result()
    assert [call.code() for call in calls].count(grpc.StatusCode.UNAUTHENTICATED) == 3


def test_a_principal_is_not_charged_for_what_others_show_elsewhere(
    start: Start, database_url: str
) -> None:
    """Its token, on a connection where it was not good before, is that connection's."""
    connect = start(threads_per_worker=1, max_concurrent_calls=6)
    ann = f"Bearer {token('ann')}"
    own, other = connect(), connect()
    own.GetTaskStats(GetTaskStatsRequest(), **shown(ann))
    with stuck([connect()], database_url, [f"Bearer {token('owner')}"]) as (task, _):
        request = GetTaskRequest(id=task.id)
        others: list[Any] = [other.GetTask.future(request, **shown(ann)) for _ in range(10)]
        wait_until(lambda: sum(call.done() for call in others) == 7, "three have places")
        mine: Any = own.GetTask.future(request, **shown(ann))
    assert mine.result().id == task.id


# Reads.


READS: dict[str, Callable[[TaskServiceStub, str], object]] = {
    "get": lambda stub, id_: stub.GetTask(GetTaskRequest(id=id_)),
    "list": lambda stub, _: stub.ListTasks(ListTasksRequest()),
    "count": lambda stub, _: stub.ListTasks(ListTasksRequest(include_total_size=True)),
    "stats": lambda stub, _: stub.GetTaskStats(GetTaskStatsRequest()),
    "batch": lambda stub, id_: stub.BatchGetTasks(BatchGetTasksRequest(ids=[id_])),
    "history": lambda stub, id_: stub.ListTaskEvents(ListTaskEventsRequest(task_id=id_)),
    "purge": lambda stub, _: stub.PurgeTasks(PurgeTasksRequest(filter='title = "a"')),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_read_that_takes_too_long_is_ended(
    start: Start,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    read: Callable[[TaskServiceStub, str], object],
) -> None:
    """A locked table simulates a large one."""
    monkeypatch.setattr("server.worker._READ_SECONDS", 0.2)
    # Longer than a test may take: a read that only this ends fails the test.
    monkeypatch.setattr("server.worker._STATEMENT_SECONDS", 3600)
    stub = start(auth_mode="none")()
    task = stub.CreateTask(CreateTaskRequest(task=Task(title="a")))
    with database.engine.connect() as connection:
        connection.exec_driver_sql("BEGIN; LOCK TABLE tasks, task_events IN ACCESS EXCLUSIVE MODE")
        with fails(grpc.StatusCode.DEADLINE_EXCEEDED, "STATEMENT_TIMEOUT"):
            read(stub, task.id)
        connection.exec_driver_sql("ROLLBACK")
