"""Statuses: the one table from an exception to a code, a message and details (AIP-193).

Each status bears an ErrorInfo, and what else fits. `ErrorInterceptor` applies the table.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from server.errors import (
    AnswerTooLargeError,
    BatchItemError,
    CredentialsExpiredError,
    InvalidRequestError,
    KeysUnavailableError,
    NoThreadError,
    PermissionDeniedError,
    RateLimitedError,
    RefusedError,
    RequestMissingError,
    RequestTimeoutError,
    RequestTooLargeError,
    ShuttingDownError,
    TooManyBytesError,
    TooManyCallsError,
    TooManyFiltersError,
    TooManyOwnCallsError,
    TooManyWaitingError,
    TooManyWatchesError,
    TransitionNotAllowedError,
    UnauthenticatedError,
)
from storage import errors as storage

DOMAIN = "taskservice"
_INTERNAL = "INTERNAL"
_RETRY_SECONDS = 1, 2


class _Row(NamedTuple):
    """A row of the table: the code, the reason, the message and the details beside ErrorInfo."""

    code: int
    reason: str
    message: Callable[[Exception], str]
    details: Callable[[Exception], Sequence[Message]] = lambda _: ()


def _says(text: str) -> Callable[[Exception], str]:
    return lambda _: text


def _violations(error: Any) -> Sequence[Message]:
    return [error_details_pb2.BadRequest(field_violations=error.violations)]


def _task(error: Exception) -> Sequence[Message]:
    return [
        error_details_pb2.ResourceInfo(
            resource_type="taskservice.v1.Task", resource_name=getattr(error, "task_id", "")
        )
    ]


def _precondition(kind: str) -> Callable[[Exception], Sequence[Message]]:
    def details(error: Exception) -> Sequence[Message]:
        violation = error_details_pb2.PreconditionFailure.Violation(
            type=kind, subject=getattr(error, "task_id", ""), description=str(error)
        )
        return [*_task(error), error_details_pb2.PreconditionFailure(violations=[violation])]

    return details


def _retry(error: Exception) -> Sequence[Message]:
    """When to try again: not all at the same moment, so that the next wave is none."""
    seconds = getattr(error, "retry_seconds", random.uniform(*_RETRY_SECONDS))  # noqa: S311
    delay = Duration()
    delay.FromMilliseconds(math.ceil(seconds * 1000))
    return [error_details_pb2.RetryInfo(retry_delay=delay)]


def _quota(error: Exception) -> Sequence[Message]:
    """RetryInfo, and whose limit it is when it is the principal's."""
    subject = getattr(error, "subject", "")
    if not subject:
        return _retry(error)
    violation = error_details_pb2.QuotaFailure.Violation(subject=subject, description=str(error))
    return [*_retry(error), error_details_pb2.QuotaFailure(violations=[violation])]


TABLE: dict[type[Exception], _Row] = {
    InvalidRequestError: _Row(code_pb2.INVALID_ARGUMENT, "INVALID_REQUEST", str, _violations),
    storage.TaskNotFoundError: _Row(
        code_pb2.NOT_FOUND, "TASK_NOT_FOUND", _says("there is no such task"), _task
    ),
    storage.TaskExistsError: _Row(
        code_pb2.ALREADY_EXISTS, "TASK_EXISTS", _says("there is a task with this id"), _task
    ),
    storage.TaskNotDeletedError: _Row(
        code_pb2.ALREADY_EXISTS, "TASK_NOT_DELETED", _says("the task is not deleted"), _task
    ),
    storage.RequestIdReusedError: _Row(
        code_pb2.ALREADY_EXISTS,
        "REQUEST_ID_REUSED",
        _says("the request_id was used with another request"),
    ),
    storage.VersionMismatchError: _Row(
        code_pb2.ABORTED, "ETAG_MISMATCH", _says("the task was written since; read it again"), _task
    ),
    storage.TransactionConflictError: _Row(
        code_pb2.ABORTED,
        "TRANSACTION_CONFLICT",
        _says("the write gave way to others; try again"),
        _retry,
    ),
    storage.TaskDeletedError: _Row(
        code_pb2.FAILED_PRECONDITION,
        "TASK_DELETED",
        _says("the task is deleted; undelete it first"),
        _precondition("TASK_DELETED"),
    ),
    TransitionNotAllowedError: _Row(
        code_pb2.FAILED_PRECONDITION,
        "STATUS_TRANSITION_NOT_ALLOWED",
        str,
        _precondition("STATUS_TRANSITION"),
    ),
    storage.EventsRemovedError: _Row(
        code_pb2.OUT_OF_RANGE,
        "RESUME_TOKEN_EXPIRED",
        _says("what follows the resume_token is no longer kept; begin with send_initial_tasks"),
    ),
    UnauthenticatedError: _Row(
        code_pb2.UNAUTHENTICATED, "UNAUTHENTICATED", _says("valid credentials are needed")
    ),
    CredentialsExpiredError: _Row(
        code_pb2.UNAUTHENTICATED,
        "CREDENTIALS_EXPIRED",
        _says("the credentials are not good any more; resume with new ones"),
    ),
    PermissionDeniedError: _Row(code_pb2.PERMISSION_DENIED, "PERMISSION_DENIED", str),
    KeysUnavailableError: _Row(code_pb2.UNAVAILABLE, "KEYS_UNAVAILABLE", str, _retry),
    RequestTooLargeError: _Row(code_pb2.RESOURCE_EXHAUSTED, "REQUEST_TOO_LARGE", str),
    AnswerTooLargeError: _Row(code_pb2.RESOURCE_EXHAUSTED, "ANSWER_TOO_LARGE", str),
    TooManyCallsError: _Row(
        code_pb2.RESOURCE_EXHAUSTED,
        "TOO_MANY_CALLS",
        _says("this server has as many calls as it takes; try again"),
        _retry,
    ),
    TooManyOwnCallsError: _Row(
        code_pb2.RESOURCE_EXHAUSTED,
        "TOO_MANY_CALLS_OF_CALLER",
        _says("this server has as many calls as it takes of one caller; try again"),
        _retry,
    ),
    TooManyBytesError: _Row(
        code_pb2.RESOURCE_EXHAUSTED,
        "TOO_MANY_BYTES",
        _says("this server has as many bytes of requests as it takes; try again"),
        _retry,
    ),
    TooManyWaitingError: _Row(
        code_pb2.RESOURCE_EXHAUSTED,
        "TOO_MANY_WAITING",
        _says("the request did not arrive, and others wait"),
        _retry,
    ),
    RequestTimeoutError: _Row(
        code_pb2.DEADLINE_EXCEEDED, "REQUEST_TIMEOUT", _says("the request did not arrive in time")
    ),
    RequestMissingError: _Row(
        code_pb2.UNIMPLEMENTED, "REQUEST_MISSING", _says("a request is missing")
    ),
    NoThreadError: _Row(
        code_pb2.UNAVAILABLE, "NO_THREAD", _says("this server has no thread for the call"), _retry
    ),
    RateLimitedError: _Row(code_pb2.RESOURCE_EXHAUSTED, "RATE_LIMIT_EXCEEDED", str, _quota),
    TooManyWatchesError: _Row(code_pb2.RESOURCE_EXHAUSTED, "TOO_MANY_WATCHES", str, _quota),
    TooManyFiltersError: _Row(code_pb2.RESOURCE_EXHAUSTED, "TOO_MANY_WATCH_FILTERS", str, _quota),
    ShuttingDownError: _Row(
        code_pb2.UNAVAILABLE, "SHUTTING_DOWN", _says("this server stops; resume elsewhere"), _retry
    ),
    storage.StatementTimeoutError: _Row(
        code_pb2.DEADLINE_EXCEEDED, "STATEMENT_TIMEOUT", _says("the query took too long")
    ),
    storage.StatementCancelledError: _Row(
        code_pb2.CANCELLED, "CALL_CANCELLED", _says("the call was cancelled")
    ),
    storage.DatabaseUnavailableError: _Row(
        code_pb2.UNAVAILABLE, "DATABASE_UNAVAILABLE", _says("the database is away"), _retry
    ),
}


# The reasons of calls that come at any rate, for they cost next to nothing to make: of those that
# were one too many or never came, and of strangers'.
_PACED = RefusedError | RateLimitedError | UnauthenticatedError
REFUSALS = [row.reason for error, row in TABLE.items() if issubclass(error, _PACED)]


def status_of(error: Exception) -> status_pb2.Status | None:
    """The status that the table gives to an exception; None for one that it does not know."""
    item = error.item if isinstance(error, BatchItemError) else ""
    row = _row_of(error)
    if row is None:
        return None
    if isinstance(error, BatchItemError):
        error = error.cause
    message = f"{item}: {row.message(error)}" if item else row.message(error)
    metadata = {"item": item} if item else None
    return status(row.code, message, row.reason, *row.details(error), metadata=metadata)


def reason_of(error: Exception) -> str:
    """The reason in the ErrorInfo of an exception's status."""
    row = _row_of(error)
    return row.reason if row else _INTERNAL


def _row_of(error: Exception) -> _Row | None:
    return TABLE.get(type(error.cause if isinstance(error, BatchItemError) else error))


def internal_status(request_id: str) -> status_pb2.Status:
    """The status of what nobody foresaw. It says where to look, and nothing of what happened."""
    return status(
        code_pb2.INTERNAL, "internal error", _INTERNAL, metadata={"request_id": request_id}
    )


def status(
    code: int,
    message: str,
    reason: str,
    *details: Message,
    metadata: dict[str, str] | None = None,
) -> status_pb2.Status:
    """A google.rpc.Status with an ErrorInfo before the other details."""
    info = error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata)
    packed = []
    for detail in (info, *details):
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=code, message=message, details=packed)
