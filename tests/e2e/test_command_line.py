"""The command line: commands, exit codes, error messages, and the log."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from storage import schema
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    CreateTaskRequest,
    GetTaskRequest,
    ListTasksRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.postgres import execute
from tests.support.service import ServiceProcess, run_command, running_service, wait_until

SECRET_KEY = "0123456789abcdef0123456789abcdef"  # noqa: S105 - of no service but these
TASK_SERVICE = str(Path(sys.executable).parent / "task-service")
MARKER = "vwxyz-of-a-caller"


def test_help_names_the_commands(tmp_path: Path) -> None:
    ran = run_command(tmp_path, "--help")
    assert ran.returncode == 0
    assert all(command in ran.stdout for command in ("serve", "migrate"))


@pytest.mark.parametrize("command", ["serve", "migrate"])
def test_help_of_a_command_runs_nothing(tmp_path: Path, command: str) -> None:
    ran = run_command(tmp_path, command, "--help")
    assert ran.returncode == 0
    assert ran.stdout.startswith(f"usage: task-service {command}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [(), ("srve",), ("serve", "--fast")])
def test_unknown_command_is_a_mistake(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    ran = run_command(tmp_path, *arguments)
    assert ran.returncode == 2
    assert "usage: task-service" in ran.stderr


@pytest.mark.parametrize("arguments", [("--help",), ("serve", "--help"), ("srve",)])
def test_entry_point_is_the_module(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    module = run_command(tmp_path, *arguments)
    script = run_command(tmp_path, *arguments, program=(TASK_SERVICE,))
    assert (script.returncode, script.stdout, script.stderr) == (
        module.returncode,
        module.stdout,
        module.stderr,
    )


def test_migrate_brings_an_empty_database_to_the_head(
    tmp_path: Path, empty_database_url: str
) -> None:
    ran = run_command(
        tmp_path,
        "migrate",
        ENVIRONMENT="production",
        AUTH_MODE="none",
        DATABASE_URL=empty_database_url,
        SECRET_KEY=SECRET_KEY,
        TLS_TERMINATED_UPSTREAM="true",
    )
    assert ran.returncode == 0, ran.stdout
    schema.check(empty_database_url)


def test_migrate_without_a_database_fails_with_a_line(tmp_path: Path) -> None:
    ran = run_command(tmp_path, "migrate", DATABASE_URL=f"postgresql:///x?host={tmp_path}/none")
    assert ran.returncode == 1
    assert "Traceback" not in ran.stdout + ran.stderr


def test_every_mistake_in_settings_has_its_line(tmp_path: Path) -> None:
    ran = run_command(
        tmp_path, "serve", ENVIRONMENT="production", GRPC_PORT="many", WORKERS="0", LOG_LEVEL="LOUD"
    )
    assert ran.returncode == 2
    assert [line.partition(":")[0] for line in ran.stderr.splitlines()] == [
        "AUTH_MODE",
        "DATABASE_URL",
        "GRPC_PORT",
        "LOG_LEVEL",
        "SECRET_KEY",
        "TLS_CERT_FILE",
        "WORKERS",
    ]


def test_mistakes_in_settings_show_no_secret(tmp_path: Path) -> None:
    ran = run_command(
        tmp_path,
        "serve",
        ENVIRONMENT="production",
        DATABASE_URL="mysql://user:hunter2@host/name",
        SECRET_KEY="too-short",  # noqa: S106 - it is refused
    )
    assert ran.returncode == 2
    assert [s for s in ("hunter2", "too-short") if s in ran.stdout + ran.stderr] == []


def test_second_service_on_one_data_dir_is_refused(
    start_service: Callable[..., ServiceProcess], tmp_path: Path
) -> None:
    service = start_service(ENVIRONMENT="development")
    assert service.port
    ran = run_command(tmp_path, "serve", DATA_DIR=str(service.data_dir))
    assert ran.returncode == 1
    assert f"is using {service.data_dir}; stop it" in ran.stdout


@pytest.fixture(scope="module")
def production(
    tmp_path_factory: pytest.TempPathFactory, shared_database_url: str
) -> Iterator[ServiceProcess]:
    with running_service(
        tmp_path_factory.mktemp("production"),
        ENVIRONMENT="production",
        DATABASE_URL=shared_database_url,
        WORKERS="1",
    ) as service:
        yield service


@pytest.fixture(scope="module")
def stub(production: ServiceProcess) -> TaskServiceStub:
    return production.stub()


def logged_call(service: ServiceProcess, request_id: str) -> dict[str, object]:
    def calls() -> list[dict[str, object]]:
        return [e for e in service.events("call") if e["request_id"] == request_id]

    found = wait_until(calls, f"the call {request_id} is in the log")
    assert len(found) == 1
    return found[0]


def test_call_has_a_line_in_the_log(production: ServiceProcess, stub: TaskServiceStub) -> None:
    stub.CreateTask(
        CreateTaskRequest(task=Task(title="a task")), metadata=(("x-request-id", "of-a-caller"),)
    )
    call = logged_call(production, "of-a-caller")
    assert call["method"] == "taskservice.v1.TaskService/CreateTask"
    assert call["code"] == "OK"
    assert isinstance(call["duration_ms"], float)
    assert str(call["peer"]).startswith("ipv4:127.0.0.1:")


def test_failed_call_is_logged_with_its_code(
    production: ServiceProcess, stub: TaskServiceStub
) -> None:
    with pytest.raises(grpc.RpcError):
        stub.GetTask(GetTaskRequest(id="no uuid"), metadata=(("x-request-id", "of-a-mistake"),))
    assert logged_call(production, "of-a-mistake")["code"] == "INVALID_ARGUMENT"


@pytest.mark.parametrize("hostile", ["with space", "x" * 129, ""], ids=["space", "long", "empty"])
def test_hostile_request_id_is_replaced(
    production: ServiceProcess, stub: TaskServiceStub, hostile: str
) -> None:
    before = len(production.events("call"))
    stub.ListTasks(ListTasksRequest(), metadata=(("x-request-id", hostile),))
    wait_until(lambda: len(production.events("call")) > before, "the call is in the log")
    logged = str(production.events("call")[-1]["request_id"])
    assert len(logged) == 32
    assert logged.isalnum()


def test_log_of_production_is_json(
    start_service: Callable[..., ServiceProcess], own_database_url: str
) -> None:
    """From the first line to the last, libraries' lines included."""
    service = start_service(ENVIRONMENT="production", DATABASE_URL=own_database_url, WORKERS="2")
    service.stub().ListTasks(ListTasksRequest())
    assert service.stop() == 0, service.log
    assert [line for line in service.lines if not line.startswith("{")] == []
    assert all(
        {"message", "level", "timestamp"} <= json.loads(line).keys() for line in service.lines
    )


def test_log_holds_nothing_of_what_callers_send(
    start_service: Callable[..., ServiceProcess], own_database_url: str
) -> None:
    """Titles and filters are the callers' data; neither an answer nor an error may log them."""
    service = start_service(
        ENVIRONMENT="production", DATABASE_URL=own_database_url, WORKERS="1", LOG_LEVEL="DEBUG"
    )
    stub = service.stub()
    stub.CreateTask(CreateTaskRequest(task=Task(title=MARKER)))
    for request in (
        lambda: stub.CreateTask(CreateTaskRequest(task=Task(title=MARKER * 100))),
        lambda: stub.CreateTask(CreateTaskRequest(task=Task(title=MARKER), task_id=MARKER)),
        lambda: stub.ListTasks(ListTasksRequest(filter=f"title = {MARKER} AND")),
        lambda: stub.ListTasks(ListTasksRequest(page_token=MARKER)),
    ):
        with pytest.raises(grpc.RpcError):
            request()
    assert service.stop() == 0, service.log
    assert len(service.events("call")) == 5
    assert MARKER not in service.log


def test_internal_errors_log_nothing_of_what_callers_send(
    start_service: Callable[..., ServiceProcess], own_database_url: str
) -> None:
    """Drivers like to quote the statement's parameters, and PostgreSQL the failing row."""
    execute(
        own_database_url, f"ALTER TABLE tasks ADD CONSTRAINT surprise CHECK (title <> '{MARKER}')"
    )
    service = start_service(ENVIRONMENT="production", DATABASE_URL=own_database_url, WORKERS="1")
    stub = service.stub()
    for statement in ("SELECT 1", "ALTER TABLE tasks DROP COLUMN description CASCADE"):
        execute(own_database_url, statement)
        with pytest.raises(grpc.RpcError):
            stub.CreateTask(CreateTaskRequest(task=Task(title=MARKER)))
    assert service.stop() == 0, service.log
    assert [event["code"] for event in service.events("call")] == ["INTERNAL"] * 2
    assert MARKER not in service.log
