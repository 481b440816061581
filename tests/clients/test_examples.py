"""The programs of examples/, in each language, against a real service."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jwt
import pytest
import trustme

from server.network.health import READINESS
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    BatchCreateTasksRequest,
    CreateTaskRequest,
    GetTaskStatsRequest,
    ListTasksRequest,
)
from tests.e2e.test_example import is_current
from tests.e2e.test_service_config import CLIENT, EXHAUSTED, FailingServer, closing_server
from tests.support.credentials import SECRET_KEY, claims
from tests.support.databases import made_database
from tests.support.examples import Example, built_go, built_typescript
from tests.support.service import (
    NOT_SERVING,
    PATIENCE_SECONDS,
    ServiceProcess,
    running_service,
    wait_until,
)

BUILDERS = {"go": built_go, "typescript": built_typescript}
PLAIN = str(CLIENT / "service_config.json")
WITH_REQUEST_IDS = str(CLIENT / "service_config.request_ids.json")
MANY = 800
LEEWAY_SECONDS = 30  # An expired token is accepted for that long.


@pytest.fixture(scope="module", params=list(BUILDERS))
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Example:
    return BUILDERS[request.param](tmp_path_factory.mktemp("example"))


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
            for kills in (1, 2):
                wait_until(lambda: len(service.workers()) == 2, "both workers are there")
                await_total(service, 100 * kills)
                assert process.poll() is None, "it ended before the last kill"
                os.kill(min(service.workers()), signal.SIGKILL)
            assert process.wait(60) == 0, lines
        assert titles(service) == {f"task {number}": 1 for number in range(1, MANY + 1)}


# Deadlines and readiness.


def test_a_call_ends_at_its_deadline(program: Example) -> None:
    """The listener accepts no connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ran = program.run(f"127.0.0.1:{listener.getsockname()[1]}", "create", "1", "task")
    assert ran.returncode == 1
    assert re.search("DeadlineExceeded|DEADLINE_EXCEEDED", ran.stderr), ran.stderr


def test_go_alone_asks_whether_a_server_is_ready(program: Example, server: FailingServer) -> None:
    """grpc-js ignores healthCheckConfig, and calls a server that is not ready."""
    server.health.set(READINESS, NOT_SERVING)
    ran = program.run(at(server), "create", "1", "task")
    expected = (0, 1) if program.command[0] == "node" else (1, 0)
    assert (ran.returncode, server.attempts["CreateTask"]) == expected, ran.stderr


# Watches.


@pytest.fixture
def start_service(tmp_path: Path, postgres_url: str) -> Iterator[Callable[..., ServiceProcess]]:
    """Starts services on one database, one after the other."""
    with made_database(postgres_url) as url, ExitStack() as services:

        def start(**settings: str) -> ServiceProcess:
            return services.enter_context(
                running_service(tmp_path / "service", DATABASE_URL=url, **settings)
            )

        yield start


def await_lines(lines: list[str], *expected: str) -> None:
    wait_until(lambda: len(lines) >= len(expected), f"{expected} are printed")
    assert lines == list(expected)


def await_token(file: Path, previous: str = "") -> str:
    """Wait for a token that is newer than the previous one."""

    def newer() -> str:
        kept = file.read_text() if file.exists() else ""
        return "" if kept == previous else kept

    return wait_until(newer, "a token is kept")


def test_a_watch_continues_after_restarts(
    program: Example, start_service: Callable[..., ServiceProcess], tmp_path: Path
) -> None:
    """Of the service, and of the program."""
    service, file = start_service(), tmp_path / "token"
    address, port = at(service), str(service.port)
    create(service, "before")
    with program.running(address, "watch", str(file)) as (_, lines):
        await_lines(lines, "ADDED before")
        await_token(file)
        service.stop()
        service = start_service(GRPC_PORT=port)
        create(service, "first")
        await_lines(lines, "ADDED before", "ADDED first")
        create(service, "second")
        await_lines(lines, "ADDED before", "ADDED first", "ADDED second")
        wait_until(lambda: is_current(service, file), "the last token is kept")
    create(service, "third")
    with program.running(address, "watch", str(file)) as (_, lines):
        await_lines(lines, "ADDED third")


def test_a_watch_begins_anew_when_its_token_is_refused(
    program: Example, service: ServiceProcess, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("no token")
    create(service, "watched")
    with program.running(at(service), "watch", str(file), "title = watched") as (_, lines):
        wait_until(lambda: lines, "the task is printed")
        assert set(lines) == {"ADDED watched"}
        assert await_token(file, "no token")


def test_an_interrupt_ends_a_watch(
    program: Example, service: ServiceProcess, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    with program.running(at(service), "watch", str(file), "title = none") as (process, _):
        await_token(file)
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE_SECONDS)


def test_a_watch_ends_when_its_filter_is_wrong(
    program: Example, service: ServiceProcess, tmp_path: Path
) -> None:
    ran = program.run(at(service), "watch", str(tmp_path / "token"), "priority = NONE")
    assert ran.returncode == 1
    assert "filter: " in ran.stderr


# Credentials.


def token(**changes: Any) -> str:
    return jwt.encode(claims("ann", iss=None, aud=None, **changes), SECRET_KEY, "HS256")


class Secured(NamedTuple):
    """A service with TLS and tokens, and the program's settings for it."""

    service: ServiceProcess
    address: str
    token_file: Path
    settings: dict[str, str]


@pytest.fixture
def secured(start_service: Callable[..., ServiceProcess], tmp_path: Path) -> Secured:
    ca = trustme.CA()
    pair = ca.issue_cert("localhost")
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    pair.cert_chain_pems[0].write_to_path(tmp_path / "chain.pem")
    pair.private_key_pem.write_to_path(tmp_path / "key.pem")
    service = start_service(
        AUTH_MODE="jwt",
        SECRET_KEY=SECRET_KEY,
        TLS_CERT_FILE=str(tmp_path / "chain.pem"),
        TLS_KEY_FILE=str(tmp_path / "key.pem"),
        TLS_TERMINATED_UPSTREAM="false",
    )
    settings = {"TASKS_CA": str(tmp_path / "ca.pem"), "TASKS_TOKEN_FILE": str(tmp_path / "jwt")}
    return Secured(service, f"localhost:{service.port}", tmp_path / "jwt", settings)


def test_a_call_with_a_token_succeeds_by_tls(program: Example, secured: Secured) -> None:
    secured.token_file.write_text(token() + "\n")
    assert program.run(secured.address, "tour", **secured.settings).returncode == 0
    secured.token_file.write_text(token(scope="tasks:read"))
    assert "tasks:write" in program.run(secured.address, "tour", **secured.settings).stderr


def test_a_token_is_not_sent_without_tls(
    program: Example, server: FailingServer, tmp_path: Path
) -> None:
    (tmp_path / "jwt").write_text(token())
    ran = program.run(at(server), "create", "1", "task", TASKS_TOKEN_FILE=str(tmp_path / "jwt"))
    assert (ran.returncode, server.attempts["CreateTask"]) == (1, 0)
    assert re.search("TLS|secure|security", ran.stderr), ran.stderr


def test_a_watch_resumes_with_a_new_token(
    program: Example, secured: Secured, tmp_path: Path
) -> None:
    """Of the same principal, when the one that it began with expires."""
    address, settings = secured.address, secured.settings
    secured.token_file.write_text(token(exp=int(time.time()) - LEEWAY_SECONDS + 5))
    with program.running(address, "watch", str(tmp_path / "token"), **settings) as (_, lines):
        await_token(tmp_path / "token")
        secured.token_file.write_text(token())
        secured.service.await_log("CREDENTIALS_EXPIRED")
        assert program.run(address, "create", "1", "task", **settings).returncode == 0
        await_lines(lines, "ADDED task 1")
