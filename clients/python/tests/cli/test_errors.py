"""Exit codes by kind of error, and errors in one line."""

from uuid import uuid4

import pytest
from grpc import StatusCode

from cli.conftest import Tasks
from servers import Failure, failing
from taskservice_client import Task, TaskClient, TaskServiceError
from taskservice_client.cli.exits import CallFailedError

MISSING = "0190a8d0-1e2b-7c3d-8e4f-5a6b7c8d9e0e"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["get", MISSING], 3, "there is no such task"),
        (["history", MISSING], 3, "there is no such task"),
        (["get", "x"], 7, "id: must be a valid UUID"),
        (["list", "--filter", "title ="], 7, "filter: "),
        (["list", "--order-by", "etag"], 7, "order_by: "),
        (["create", " "], 7, "task.title: must not be blank"),
        (["create", "a", "--due-date", "2001-01-01"], 7, "task.due_date: must be in the future"),
        (["purge", " "], 7, "filter: must not be blank"),
        (["stats", "--address", "127.0.0.1:1", "--timeout", "1"], 6, "no answer from the service"),
        (["stats", "--timeout", "soon"], 2, "Invalid value for '--timeout'"),
        (["create", "a", "--due-date", "soon"], 2, "'soon' is no time"),
        (["list", "--status", "open"], 2, "Invalid value for '--status'"),
        (["list", "--no-such-option"], 2, "No such option"),
        (["no-such-command"], 2, "No such command"),
        (["watch", "-o", "json"], 2, "a watch has no end"),
        (["delete", MISSING, MISSING, "--etag", "x"], 2, "--etag needs a single task"),
        (["import", "/no/such/file"], 2, "/no/such/file: No such file or directory"),
        (["export", "/no/such/folder/file"], 2, "No such file or directory"),
    ],
)
def test_an_error_has_its_exit_code_and_one_line(
    tasks: Tasks, arguments: list[str], code: int, message: str
) -> None:
    result = tasks(*arguments)
    assert result.code == code
    assert message in result.errors
    assert result.errors.startswith("tasks: ")
    assert result.errors.count("\n") == 1
    assert result.output == ""


def test_a_conflict_has_its_exit_code(tasks: Tasks, client: TaskClient) -> None:
    task = client.create(title="a")
    assert tasks("create", "b", "--id", task.id).code == 4
    assert tasks("undelete", task.id).code == 4
    assert tasks("delete", task.id, "--etag", '"stale"').code == 4
    client.update(task.id, status="COMPLETED")
    assert tasks("update", task.id, "--status", "cancelled").code == 4


def test_an_error_lists_every_violation(tasks: Tasks) -> None:
    errors = tasks("create", "x" * 201, "--tag", "", "--id", "1").errors
    for field in ["task.title", "task.tags[0]", "task_id"]:
        assert f"{field}: " in errors


def test_verbose_shows_code_and_reason(tasks: Tasks) -> None:
    assert "TASK_NOT_FOUND" not in tasks("get", str(uuid4())).errors
    assert "[NOT_FOUND, TASK_NOT_FOUND" in tasks("get", str(uuid4()), "-v").errors


def test_verbose_shows_the_request_id_that_the_log_has() -> None:
    error = TaskServiceError(StatusCode.INTERNAL, "an unexpected failure", "INTERNAL")
    error.request_id = "7f3a"
    failed = CallFailedError(error, verbose=True)
    assert str(failed) == "an unexpected failure [INTERNAL, INTERNAL, id 7f3a]"
    assert failed.exit_code == 1


def test_health_of_an_unreachable_service_is_unavailable(tasks: Tasks) -> None:
    assert tasks("health", "--address", "127.0.0.1:1", "--timeout", "1").code == 6


def test_an_error_tells_how_many_tasks_were_written_before() -> None:
    error = TaskServiceError(StatusCode.UNAVAILABLE, "the last attempt failed", "SHUTTING_DOWN")
    error.written = [Task(), Task()]
    failed = CallFailedError(error, verbose=False)
    assert str(failed) == "the last attempt failed; 2 tasks were written before"


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (StatusCode.PERMISSION_DENIED, 5, "permission denied: as told"),
        (StatusCode.UNIMPLEMENTED, 1, "unimplemented: as told"),
    ],
)
def test_an_error_of_a_proxy_is_named_by_its_code(
    tasks: Tasks, status: StatusCode, code: int, message: str
) -> None:
    with failing(Failure(status)) as (address, _):
        result = tasks("stats", "--address", address)
    assert (result.code, result.errors) == (code, f"tasks: {message}\n")


def test_a_call_that_is_cancelled_has_no_answer() -> None:
    failed = CallFailedError(TaskServiceError(StatusCode.CANCELLED, "ended"), verbose=False)
    assert (failed.exit_code, str(failed)) == (6, "no answer from the service: ended")
