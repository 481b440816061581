"""The programs of examples/, in each language, against a real service."""

from __future__ import annotations

import os
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    BatchCreateTasksRequest,
    CreateTaskRequest,
    GetTaskStatsRequest,
    ListTasksRequest,
)
from tests.e2e.test_service_config import CLIENT, EXHAUSTED, FailingServer, closing_server
from tests.support.databases import made_database
from tests.support.examples import Example, built_go, built_typescript
from tests.support.service import (
    ServiceProcess,
    running_service,
    wait_until,
)

BUILDERS = {"go": built_go, "typescript": built_typescript}
PLAIN = str(CLIENT / "service_config.json")
WITH_REQUEST_IDS = str(CLIENT / "service_config.request_ids.json")
MANY = 1500


@pytest.fixture(scope="module", params=list(BUILDERS))
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Example:
    return BUILDERS[request.param](tmp_path_factory.mktemp("example"))


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, postgres_url: str
) -> Iterator[ServiceProcess]:
    with (
        made_database(postgres_url) as url,
        running_service(tmp_path_factory.mktemp("service"), DATABASE_URL=url) as service,
    ):
        yield service


@pytest.fixture
def server() -> Iterator[FailingServer]:
    with closing_server(FailingServer()) as server:
        yield server


def at(server: FailingServer | ServiceProcess) -> str:
    return f"127.0.0.1:{server.port}"


def create(service: ServiceProcess, *titles: str) -> None:
    requests = [CreateTaskRequest(task=Task(title=title)) for title in titles]
    service.stub().BatchCreateTasks(BatchCreateTasksRequest(requests=requests))


def titles(service: ServiceProcess) -> Counter[str]:
    """Count the tasks by title."""
    stub, request, found = service.stub(), ListTasksRequest(page_size=1000), Counter[str]()
    while True:
        page = stub.ListTasks(request)
        found.update(task.title for task in page.tasks)
        request.page_token = page.next_page_token
        if not request.page_token:
            return found


def await_total(service: ServiceProcess, count: int) -> None:
    """Wait until the service has that many tasks."""

    def is_reached() -> bool:
        return service.stub().GetTaskStats(GetTaskStatsRequest()).total >= count

    wait_until(is_reached, f"{count} tasks")


# What the programs show.


def test_a_tour_meets_a_conflict_and_violations(program: Example, service: ServiceProcess) -> None:
    ran = program.run(at(service), "tour")
    assert ran.stderr == ""
    assert ran.stdout.splitlines() == [
        "created: Send the invoices",
        "renamed: Send all invoices",
        "refused: ETAG_MISMATCH",
        "completed: Send all invoices",
        "invalid: task.title must not be blank",
    ]


def test_a_list_has_each_task_of_all_pages_once(program: Example, service: ServiceProcess) -> None:
    create(service, *(f"page {number}" for number in range(250)))
    ran = program.run(at(service), "list", "page")
    expected = {line: 1 for number in range(250) for line in [f"PENDING page {number}"]}
    counted = Counter(ran.stdout.splitlines())
    assert counted.keys() == expected.keys(), ran.stderr
    assert len(set(counted.values())) == 1


# The service config.


@pytest.mark.parametrize("config", [PLAIN, WITH_REQUEST_IDS])
def test_a_read_is_retried(program: Example, server: FailingServer, config: str) -> None:
    server.failures = 3
    ran = program.run(at(server), "list", TASKS_SERVICE_CONFIG=config)
    assert (ran.returncode, server.attempts["ListTasks"]) == (0, 4), ran.stderr


def test_a_write_is_not_retried(program: Example, server: FailingServer) -> None:
    server.failures = 3
    ran = program.run(at(server), "create", "1", "task", TASKS_SERVICE_CONFIG=PLAIN)
    assert (ran.returncode, server.attempts["CreateTask"]) == (1, 1), ran.stderr


def test_a_write_with_a_request_id_is_retried(program: Example, server: FailingServer) -> None:
    server.failures = 3
    ran = program.run(at(server), "create", "1", "task")
    assert (ran.returncode, server.attempts["CreateTask"]) == (0, 4), ran.stderr


@pytest.mark.parametrize("config", [PLAIN, WITH_REQUEST_IDS])
def test_a_refused_write_is_retried(program: Example, server: FailingServer, config: str) -> None:
    server.failures, server.code, server.pushback = 3, EXHAUSTED, "1"
    ran = program.run(at(server), "create", "1", "task", TASKS_SERVICE_CONFIG=config)
    assert (ran.returncode, server.attempts["CreateTask"]) == (0, 4), ran.stderr


def test_a_write_waits_for_a_connection(program: Example) -> None:
    """The first connection fails; the write is not one that would be retried."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        arguments = (f"127.0.0.1:{port}", "create", "1", "task")
        with program.running(*arguments, TASKS_SERVICE_CONFIG=PLAIN) as (process, lines):
            listener.accept()[0].close()
            listener.close()
            with closing_server(FailingServer(port)):
                assert process.wait(60) == 0, lines


def test_no_write_fails_or_doubles_while_workers_are_killed(
    program: Example, postgres_url: str, tmp_path: Path
) -> None:
    with (
        made_database(postgres_url) as url,
        running_service(tmp_path / "service", DATABASE_URL=url, WORKERS="2") as service,
    ):
        with program.running(at(service), "create", str(MANY), "task") as (process, lines):
            for kills in range(1, 4):
                wait_until(lambda: len(service.workers()) == 2, "both workers are there")
                await_total(service, 100 * kills)
                assert process.poll() is None, "it ended before the last kill"
                os.kill(min(service.workers()), signal.SIGKILL)
            assert process.wait(60) == 0, lines
        assert titles(service) == {f"task {number}": 1 for number in range(1, MANY + 1)}
