"""The service behind PgBouncer in transaction mode: each statement may have another session."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    BatchCreateTasksRequest,
    BatchDeleteTasksRequest,
    BatchGetTasksRequest,
    BatchUpdateTasksRequest,
    CreateTaskRequest,
    DeleteTaskRequest,
    GetTaskRequest,
    GetTaskStatsRequest,
    ListTaskEventsRequest,
    ListTasksRequest,
    PurgeTasksRequest,
    UndeleteTaskRequest,
    UpdateTaskRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.databases import made_database
from tests.support.pooler import DEFAULTS, LENIENT, ask, running_pgbouncer
from tests.support.postgres import await_none_waiting, await_waiting, execute, locked_task
from tests.support.service import (
    PATIENCE_SECONDS,
    ServiceProcess,
    await_ready,
    run_command,
    running_service,
)
from tests.support.watching import ADDED, BOOKMARK, Watch

SERVED = {"ENVIRONMENT": "staging", "AUTH_MODE": "none", "TLS_TERMINATED_UPSTREAM": "true"} | {
    "SECRET_KEY": "0123456789abcdef0123456789abcdef"
}
MODES = [pytest.param(DEFAULTS, id="defaults"), pytest.param(LENIENT, id="ignores options")]


@pytest.fixture(scope="module")
def direct_url(postgres_url: str) -> Iterator[str]:
    """PostgreSQL itself, whose time zone is far from UTC."""
    with made_database(postgres_url) as url:
        name = url.rpartition("/")[2].partition("?")[0]
        execute(url, f"ALTER DATABASE {name} SET timezone = 'Asia/Tokyo'")
        yield url


@pytest.fixture(scope="module", params=MODES)
def pooled_url(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, direct_url: str
) -> Iterator[str]:
    with running_pgbouncer(tmp_path_factory.mktemp("pooler"), direct_url, request.param) as url:
        yield url


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, pooled_url: str, direct_url: str
) -> Iterator[ServiceProcess]:
    with running_service(
        tmp_path_factory.mktemp("service"),
        (),
        {"server.tasks.watches.BOOKMARK_SECONDS": 3600, "server.worker._STATEMENT_SECONDS": 2},
        ENVIRONMENT="staging",
        DATABASE_URL=pooled_url,
        DATABASE_DIRECT_URL=direct_url,
        WORKERS="2",
    ) as service:
        await_ready(service.channel())
        yield service


@pytest.fixture(scope="module")
def stub(service: ServiceProcess) -> TaskServiceStub:
    return service.stub()


def created(stub: TaskServiceStub, **fields: Any) -> Task:
    request = CreateTaskRequest(task=Task(**{"title": "a task", **fields}))
    return stub.CreateTask(request, timeout=PATIENCE_SECONDS)


def test_every_call_works_behind_a_pooler(stub: TaskServiceStub) -> None:
    tag = uuid.uuid4().hex
    task = created(stub, tags=[tag], title="Übung")
    assert stub.GetTask(GetTaskRequest(id=task.id)) == task
    changed = stub.UpdateTask(UpdateTaskRequest(task=Task(id=task.id, title="other")))
    batch = stub.BatchCreateTasks(
        BatchCreateTasksRequest(requests=[CreateTaskRequest(task=Task(title="b", tags=[tag]))] * 3)
    ).tasks
    ids = [task.id for task in batch]
    assert list(stub.BatchGetTasks(BatchGetTasksRequest(ids=ids)).tasks) == list(batch)
    updates = [UpdateTaskRequest(task=Task(id=id_, title="c")) for id_ in ids]
    stub.BatchUpdateTasks(BatchUpdateTasksRequest(requests=updates))
    listed = stub.ListTasks(ListTasksRequest(filter=f"tags:{tag}", include_total_size=True))
    assert listed.total_size == len(listed.tasks) == 4
    assert stub.GetTaskStats(GetTaskStatsRequest(filter=f"tags:{tag}")).total == 4
    deletions = [DeleteTaskRequest(id=id_) for id_ in ids]
    stub.BatchDeleteTasks(BatchDeleteTasksRequest(requests=deletions))
    stub.DeleteTask(DeleteTaskRequest(id=task.id))
    assert stub.UndeleteTask(UndeleteTaskRequest(id=task.id)).title == changed.title
    purge = PurgeTasksRequest(filter=f"tags:{tag}", force=True)
    assert stub.PurgeTasks(purge).purge_count == 3
    assert len(stub.ListTaskEvents(ListTaskEventsRequest(task_id=task.id)).events) == 4


def test_a_retried_request_id_is_found_behind_a_pooler(stub: TaskServiceStub) -> None:
    request = CreateTaskRequest(task=Task(title="once"), request_id=str(uuid.uuid4()))
    assert stub.CreateTask(request).id == stub.CreateTask(request).id


def test_validate_only_leaves_nothing_behind_a_pooler(stub: TaskServiceStub) -> None:
    tag = uuid.uuid4().hex
    stub.CreateTask(CreateTaskRequest(task=Task(title="a", tags=[tag]), validate_only=True))
    assert not stub.ListTasks(ListTasksRequest(filter=f"tags:{tag}")).tasks


def test_a_watch_is_woken_by_a_write_behind_a_pooler(stub: TaskServiceStub) -> None:
    tag = uuid.uuid4().hex
    watch = Watch(stub, filter=f"tags:{tag}")
    assert watch.next().type == BOOKMARK
    task = created(stub, tags=[tag])
    response = watch.next()
    assert (response.type, response.task.id) == (ADDED, task.id)


def test_workers_do_not_listen_by_way_of_the_pooler(
    service: ServiceProcess, pooled_url: str
) -> None:
    """It would stay with a connection that others use."""
    Watch(service.stub()).bookmark()
    channels = "SELECT count(*) FROM pg_listening_channels()"
    assert {ask(pooled_url, channels) for _ in range(6)} == {0}


def test_a_statement_ends_at_its_timeout_behind_a_pooler(
    stub: TaskServiceStub, direct_url: str
) -> None:
    task = created(stub)
    with locked_task(direct_url, task.id), pytest.raises(grpc.RpcError) as raised:
        stub.UpdateTask(UpdateTaskRequest(task=Task(id=task.id, title="new")))
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert raised.value.details() == "the query took too long"
    await_none_waiting(direct_url)


def test_statements_in_a_transaction_end_at_their_timeout_behind_a_pooler(
    stub: TaskServiceStub, direct_url: str
) -> None:
    tasks = [created(stub), created(stub)]
    updates = [UpdateTaskRequest(task=Task(id=task.id, title="new")) for task in tasks]
    with locked_task(direct_url, tasks[1].id), pytest.raises(grpc.RpcError) as raised:
        stub.BatchUpdateTasks(BatchUpdateTasksRequest(requests=updates))
    assert raised.value.details() == "the query took too long"
    assert stub.GetTask(GetTaskRequest(id=tasks[0].id)).title == "a task"


def test_a_cancelled_call_ends_its_statement_behind_a_pooler(
    stub: TaskServiceStub, direct_url: str
) -> None:
    task = created(stub)
    with locked_task(direct_url, task.id):
        call: Any = stub.UpdateTask.future(UpdateTaskRequest(task=Task(id=task.id, title="new")))
        await_waiting(direct_url)
        call.cancel()
        await_none_waiting(direct_url)


def test_other_clients_of_the_pooler_keep_their_sessions(
    stub: TaskServiceStub, pooled_url: str
) -> None:
    """The pool has three connections: a setting left on one would reach the next client."""
    for _ in range(10):
        created(stub)
    assert {ask(pooled_url, "SHOW statement_timeout") for _ in range(6)} == {"0"}
    assert {ask(pooled_url, "SHOW timezone") for _ in range(6)} == {"Asia/Tokyo"}


def test_the_last_moment_of_the_calendar_is_read_behind_a_pooler(stub: TaskServiceStub) -> None:
    """In Tokyo it is in the year 10000."""
    task = Task(title="for ever")
    task.due_date.FromJsonString("9999-12-31T23:59:59Z")
    task = stub.CreateTask(CreateTaskRequest(task=task))
    assert stub.GetTask(GetTaskRequest(id=task.id)) == task
    (event,) = stub.ListTaskEvents(ListTaskEventsRequest(task_id=task.id)).events
    assert event.changes


def test_migrations_at_the_same_time_all_end_behind_a_pooler(
    tmp_path: Path, pooled_url: str, direct_url: str
) -> None:
    def migrate(number: int) -> int:
        folder = tmp_path / str(number)
        folder.mkdir()
        urls = {"DATABASE_URL": pooled_url, "DATABASE_DIRECT_URL": direct_url}
        return run_command(folder, "migrate", program=(), **urls).returncode

    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(migrate, range(3))) == [0, 0, 0]
    locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
    assert execute(direct_url, locks) == 0


@pytest.mark.parametrize("command", ["migrate", "serve"])
@pytest.mark.parametrize("with_direct", [False, True], ids=["no direct URL", "it is no direct one"])
def test_a_pooler_without_a_way_past_it_is_refused(
    tmp_path: Path, pooled_url: str, command: str, with_direct: bool
) -> None:
    urls = {"DATABASE_URL": pooled_url} | (
        {"DATABASE_DIRECT_URL": pooled_url} if with_direct else {}
    )
    done = run_command(tmp_path, command, program=(), **SERVED | urls)
    assert done.returncode == 1
    last = done.stdout.splitlines()[-1]
    assert "a pooler stands before the database: set DATABASE_DIRECT_URL" in last
    assert "Traceback" not in done.stdout + done.stderr


def test_options_that_the_pooler_refuses_are_refused_in_a_line(
    tmp_path: Path, direct_url: str
) -> None:
    with running_pgbouncer(tmp_path / "pooler", direct_url, DEFAULTS) as url:
        urls = {
            "DATABASE_URL": f"{url}?options=-csearch_path%3Dapp",
            "DATABASE_DIRECT_URL": direct_url,
        }
        done = run_command(tmp_path, "serve", program=(), **SERVED | urls)
    assert done.returncode == 1
    assert "unsupported startup parameter: options" in done.stdout.splitlines()[-1]


def test_a_pooler_found_after_an_outage_is_reported_by_readiness(
    tmp_path: Path, direct_url: str, start_service: Callable[..., ServiceProcess]
) -> None:
    """The pooler could not be detected at the start."""
    with running_pgbouncer(tmp_path / "pooler", direct_url, DEFAULTS) as url:
        pass
    service = start_service(ENVIRONMENT="staging", DATABASE_URL=url, WORKERS="1")
    service.await_log("the database is away")
    port = url.rpartition(":")[2].partition("/")[0]
    settings = {"listen_port": port}
    with running_pgbouncer(tmp_path / "pooler", direct_url, settings):
        service.await_log("set DATABASE_DIRECT_URL")
