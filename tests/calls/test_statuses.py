"""Every row of the error table, and unexpected exceptions: code, reason, details, no leak."""

from __future__ import annotations

import uuid

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2
from sqlalchemy import create_engine, text

from server import errors
from server.calls import statuses
from server.settings import Settings
from storage import errors as storage
from taskservice.v1.error_reason_pb2 import ErrorReason
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    CreateTaskRequest,
    GetTaskRequest,
    ListTaskEventsRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.errors import fails
from tests.support.workers import running_worker

ROWS: list[tuple[Exception, int, str, set[str]]] = [
    (
        errors.InvalidRequestError([errors.violation("title", "is bad", "BAD")]),
        code_pb2.INVALID_ARGUMENT,
        "INVALID_REQUEST",
        {"BadRequest"},
    ),
    (
        errors.TransitionNotAllowedError("id", 3, 4),
        code_pb2.FAILED_PRECONDITION,
        "STATUS_TRANSITION_NOT_ALLOWED",
        {"ResourceInfo", "PreconditionFailure"},
    ),
    (
        storage.TaskDeletedError("id"),
        code_pb2.FAILED_PRECONDITION,
        "TASK_DELETED",
        {"ResourceInfo", "PreconditionFailure"},
    ),
    (storage.TaskNotFoundError("id"), code_pb2.NOT_FOUND, "TASK_NOT_FOUND", {"ResourceInfo"}),
    (storage.TaskExistsError("id"), code_pb2.ALREADY_EXISTS, "TASK_EXISTS", {"ResourceInfo"}),
    (
        storage.TaskNotDeletedError("id"),
        code_pb2.ALREADY_EXISTS,
        "TASK_NOT_DELETED",
        {"ResourceInfo"},
    ),
    (storage.RequestIdReusedError("id"), code_pb2.ALREADY_EXISTS, "REQUEST_ID_REUSED", set()),
    (storage.VersionMismatchError("id"), code_pb2.ABORTED, "ETAG_MISMATCH", {"ResourceInfo"}),
    (
        storage.TransactionConflictError("secret"),
        code_pb2.ABORTED,
        "TRANSACTION_CONFLICT",
        {"RetryInfo"},
    ),
    (storage.EventsRemovedError(), code_pb2.OUT_OF_RANGE, "RESUME_TOKEN_EXPIRED", set()),
    (
        errors.RequestTooLargeError(3, 2),
        code_pb2.RESOURCE_EXHAUSTED,
        "REQUEST_TOO_LARGE",
        set(),
    ),
    (errors.AnswerTooLargeError(9), code_pb2.RESOURCE_EXHAUSTED, "ANSWER_TOO_LARGE", set()),
    (
        errors.TooManyCallsError(),
        code_pb2.RESOURCE_EXHAUSTED,
        "TOO_MANY_CALLS",
        {"RetryInfo"},
    ),
    (
        errors.TooManyOwnCallsError(),
        code_pb2.RESOURCE_EXHAUSTED,
        "TOO_MANY_CALLS_OF_CALLER",
        {"RetryInfo"},
    ),
    (errors.TooManyBytesError(), code_pb2.RESOURCE_EXHAUSTED, "TOO_MANY_BYTES", {"RetryInfo"}),
    (
        errors.TooManyFiltersError("secret", 20),
        code_pb2.RESOURCE_EXHAUSTED,
        "TOO_MANY_WATCH_FILTERS",
        {"RetryInfo", "QuotaFailure"},
    ),
    (
        errors.TooManyWaitingError(),
        code_pb2.RESOURCE_EXHAUSTED,
        "TOO_MANY_WAITING",
        {"RetryInfo"},
    ),
    (errors.RequestTimeoutError(), code_pb2.DEADLINE_EXCEEDED, "REQUEST_TIMEOUT", set()),
    (errors.RequestMissingError(), code_pb2.UNIMPLEMENTED, "REQUEST_MISSING", set()),
    (errors.NoThreadError(), code_pb2.UNAVAILABLE, "NO_THREAD", {"RetryInfo"}),
    (
        errors.RateLimitedError("secret", 0.25),
        code_pb2.RESOURCE_EXHAUSTED,
        "RATE_LIMIT_EXCEEDED",
        {"RetryInfo", "QuotaFailure"},
    ),
    (
        errors.TooManyWatchesError(),
        code_pb2.RESOURCE_EXHAUSTED,
        "TOO_MANY_WATCHES",
        {"RetryInfo"},
    ),
    (
        errors.TooManyWatchesError("secret"),
        code_pb2.RESOURCE_EXHAUSTED,
        "TOO_MANY_WATCHES",
        {"RetryInfo", "QuotaFailure"},
    ),
    (
        errors.ShuttingDownError("secret"),
        code_pb2.UNAVAILABLE,
        "SHUTTING_DOWN",
        {"RetryInfo"},
    ),
    (errors.UnauthenticatedError(), code_pb2.UNAUTHENTICATED, "UNAUTHENTICATED", set()),
    (
        errors.PermissionDeniedError("tasks:write"),
        code_pb2.PERMISSION_DENIED,
        "PERMISSION_DENIED",
        set(),
    ),
    (
        errors.CredentialsExpiredError("secret"),
        code_pb2.UNAUTHENTICATED,
        "CREDENTIALS_EXPIRED",
        set(),
    ),
    (errors.KeysUnavailableError(), code_pb2.UNAVAILABLE, "KEYS_UNAVAILABLE", {"RetryInfo"}),
    (storage.StatementTimeoutError(), code_pb2.DEADLINE_EXCEEDED, "STATEMENT_TIMEOUT", set()),
    (storage.StatementCancelledError(), code_pb2.CANCELLED, "CALL_CANCELLED", set()),
    (
        storage.DatabaseUnavailableError("secret"),
        code_pb2.UNAVAILABLE,
        "DATABASE_UNAVAILABLE",
        {"RetryInfo"},
    ),
]


@pytest.mark.parametrize(
    ("error", "code", "reason", "details"), ROWS, ids=lambda v: v if isinstance(v, str) else ""
)
def test_an_exception_becomes_its_status(
    error: Exception, code: int, reason: str, details: set[str]
) -> None:
    status = statuses.status_of(error)
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    status.details[0].Unpack(info)
    assert (status.code, info.reason, info.domain) == (code, reason, "taskservice")
    assert {any_.TypeName().rpartition(".")[2] for any_ in status.details[1:]} == details
    assert "secret" not in status.message


def test_no_row_of_the_table_is_untested() -> None:
    assert {type(row[0]) for row in ROWS} == set(statuses.TABLE)


def test_the_contract_lists_every_reason_and_no_other() -> None:
    prefix = "ERROR_REASON_"
    listed = {name.removeprefix(prefix) for name, number in ErrorReason.items() if number}
    raised = [*(error for error, *_ in ROWS), ValueError()]
    assert {statuses.reason_of(error) for error in raised} == listed


@pytest.mark.parametrize("cause", [row[0] for row in ROWS], ids=lambda v: type(v).__name__)
def test_an_item_of_a_batch_fails_as_it_would_alone_and_is_named(cause: Exception) -> None:
    alone, status = (
        statuses.status_of(cause),
        statuses.status_of(errors.BatchItemError("ids[3]", cause)),
    )
    assert alone is not None
    assert status is not None
    assert (status.code, status.message) == (alone.code, f"ids[3]: {alone.message}")
    assert [_steady(any_) for any_ in status.details[1:]] == [
        _steady(any_) for any_ in alone.details[1:]
    ]
    infos = []
    for details in (alone.details, status.details):
        infos.append(error_details_pb2.ErrorInfo())
        details[0].Unpack(infos[-1])
    assert dict(infos[1].metadata) == {"item": "ids[3]"}
    assert infos[1].reason == infos[0].reason


def _steady(detail: any_pb2.Any) -> object:
    """A detail, but for the delay until a retry, which is another each time."""
    is_retry = detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR)
    return detail.type_url if is_retry else detail


def test_those_who_are_refused_together_do_not_come_back_together() -> None:
    delays = set()
    for _ in range(20):
        status = statuses.status_of(errors.TooManyCallsError())
        assert status is not None
        retry = error_details_pb2.RetryInfo()
        status.details[1].Unpack(retry)
        delays.add(retry.retry_delay.ToMilliseconds())
    assert len(delays) > 1
    assert all(1000 <= delay <= 2000 for delay in delays)


def test_an_item_that_failed_for_no_known_reason_is_no_known_error() -> None:
    assert statuses.status_of(errors.BatchItemError("ids[3]", ValueError("secret"))) is None


def test_an_internal_error_says_where_to_look_and_nothing_else(
    settings: Settings, own_database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The text is fixed; the id stands in the log, beside what really happened and where."""
    with running_worker(settings, own_database_url) as channel:
        with create_engine(own_database_url).connect() as connection:
            connection.execute(text("ALTER TABLE tasks RENAME TO elsewhere"))
            connection.commit()
        with fails(grpc.StatusCode.INTERNAL, "INTERNAL") as failure:
            TaskServiceStub(channel).GetTask(
                GetTaskRequest(id=str(uuid.UUID(int=1))),
                metadata=(("x-request-id", "find-me"),),
            )
    assert failure.message == "internal error"
    assert failure.info.metadata["request_id"] == "find-me"
    logged = capsys.readouterr().out
    assert "find-me" in logged
    assert 'relation "tasks" does not exist' in logged
    assert "storage/repository.py" in logged


def test_the_log_has_the_stack_of_an_internal_error_but_not_what_it_quotes(
    settings: Settings, own_database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The texts of exceptions that are not of ours may have what a caller wrote."""
    with running_worker(settings, own_database_url) as channel:
        stub = TaskServiceStub(channel)
        task = stub.CreateTask(CreateTaskRequest(task=Task(title="a task")))
        with create_engine(own_database_url).connect() as connection:
            known = "ck_task_events_type_known"
            connection.execute(text(f"ALTER TABLE task_events DROP CONSTRAINT {known}"))
            connection.execute(text("UPDATE task_events SET type = 'a marker'"))
            connection.commit()
        with fails(grpc.StatusCode.INTERNAL, "INTERNAL"):
            stub.ListTaskEvents(ListTaskEventsRequest(task_id=task.id))
    logged = capsys.readouterr().out
    assert "in event_to_proto" in logged
    assert "\nValueError" in logged
    assert "A MARKER" not in logged.upper()
