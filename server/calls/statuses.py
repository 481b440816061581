"""Map exceptions to gRPC statuses (AIP-193): one table of codes, reasons, messages and details.

Every status has an ErrorInfo before its other details. The contract describes each reason in its
enum ErrorReason.
"""

import math
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2 as code
from google.rpc import error_details_pb2, status_pb2

from server import errors
from storage import errors as storage

DOMAIN = "taskservice"
_INTERNAL = "INTERNAL"
_TASK = "taskservice.v1.Task"
_RETRY_SECONDS = 1, 2


class _Row(NamedTuple):
    """The code, the reason, the message and the details beside ErrorInfo."""

    code: int
    reason: str
    message: str | None  # None: the text of the exception.
    details: Callable[[Exception], Sequence[Message]] = lambda _: ()


def _violations(error: Any) -> Sequence[Message]:
    return [error_details_pb2.BadRequest(field_violations=error.violations)]


def _task(error: Exception) -> Sequence[Message]:
    task_id = getattr(error, "task_id", "")
    return [error_details_pb2.ResourceInfo(resource_type=_TASK, resource_name=task_id)]


def _precondition(kind: str, error: Exception) -> Sequence[Message]:
    violation = error_details_pb2.PreconditionFailure.Violation(
        type=kind, subject=getattr(error, "task_id", ""), description=str(error)
    )
    return [*_task(error), error_details_pb2.PreconditionFailure(violations=[violation])]


def _retry(error: Exception) -> Sequence[Message]:
    """Return the delay before a retry: random, so that rejected calls do not return together."""
    seconds = getattr(error, "retry_seconds", random.uniform(*_RETRY_SECONDS))  # noqa: S311
    delay = Duration()
    delay.FromMilliseconds(math.ceil(seconds * 1000))
    return [error_details_pb2.RetryInfo(retry_delay=delay)]


def _quota(error: Exception) -> Sequence[Message]:
    """Return RetryInfo, and QuotaFailure if the limit is the principal's."""
    if not (subject := getattr(error, "subject", "")):
        return _retry(error)
    violation = error_details_pb2.QuotaFailure.Violation(subject=subject, description=str(error))
    return [*_retry(error), error_details_pb2.QuotaFailure(violations=[violation])]


_exhausted = partial(_Row, code.RESOURCE_EXHAUSTED)
_busy = partial(_exhausted, details=_retry)
_unavailable = partial(_Row, code.UNAVAILABLE, details=_retry)

TABLE: dict[type[Exception], _Row] = {
    errors.InvalidRequestError: _Row(code.INVALID_ARGUMENT, "INVALID_REQUEST", None, _violations),
    storage.TaskNotFoundError: _Row(
        code.NOT_FOUND, "TASK_NOT_FOUND", "there is no such task", _task
    ),
    storage.TaskExistsError: _Row(
        code.ALREADY_EXISTS, "TASK_EXISTS", "there is a task with this id", _task
    ),
    storage.TaskNotDeletedError: _Row(
        code.ALREADY_EXISTS, "TASK_NOT_DELETED", "the task is not deleted", _task
    ),
    storage.RequestIdReusedError: _Row(
        code.ALREADY_EXISTS, "REQUEST_ID_REUSED", "the request_id was used with another request"
    ),
    storage.VersionMismatchError: _Row(
        code.ABORTED, "ETAG_MISMATCH", "the task was written since; read it again", _task
    ),
    storage.TransactionConflictError: _Row(
        code.ABORTED,
        "TRANSACTION_CONFLICT",
        "concurrent writes prevented this one; try again",
        _retry,
    ),
    storage.TaskDeletedError: _Row(
        code.FAILED_PRECONDITION,
        "TASK_DELETED",
        "the task is deleted; undelete it first",
        partial(_precondition, "TASK_DELETED"),
    ),
    errors.TransitionNotAllowedError: _Row(
        code.FAILED_PRECONDITION,
        "STATUS_TRANSITION_NOT_ALLOWED",
        None,
        partial(_precondition, "STATUS_TRANSITION"),
    ),
    storage.EventsRemovedError: _Row(
        code.OUT_OF_RANGE,
        "RESUME_TOKEN_EXPIRED",
        "the events after the resume_token are no longer stored; use send_initial_tasks",
    ),
    errors.UnauthenticatedError: _Row(
        code.UNAUTHENTICATED, "UNAUTHENTICATED", "valid credentials are needed"
    ),
    errors.CredentialsExpiredError: _Row(
        code.UNAUTHENTICATED,
        "CREDENTIALS_EXPIRED",
        "the credentials are no longer valid; resume with new ones",
    ),
    errors.PermissionDeniedError: _Row(code.PERMISSION_DENIED, "PERMISSION_DENIED", None),
    errors.KeysUnavailableError: _unavailable(
        "KEYS_UNAVAILABLE", "there are no keys yet to verify tokens with"
    ),
    errors.RequestTooLargeError: _exhausted("REQUEST_TOO_LARGE", None),
    errors.AnswerTooLargeError: _exhausted("ANSWER_TOO_LARGE", None),
    errors.TooManyCallsError: _busy(
        "TOO_MANY_CALLS", "this server is at its limit of concurrent calls; try again"
    ),
    errors.TooManyOwnCallsError: _busy(
        "TOO_MANY_CALLS_OF_CALLER",
        "this server is at its limit of concurrent calls from one client; try again",
    ),
    errors.TooManyBytesError: _busy(
        "TOO_MANY_BYTES", "this server is at its limit of bytes in queued requests; try again"
    ),
    errors.TooManyWaitingError: _busy(
        "TOO_MANY_WAITING", "the request did not arrive, and too many other calls are waiting"
    ),
    errors.RequestTimeoutError: _Row(
        code.DEADLINE_EXCEEDED, "REQUEST_TIMEOUT", "the request did not arrive in time"
    ),
    errors.RequestMissingError: _Row(
        code.UNIMPLEMENTED, "REQUEST_MISSING", "the call ended without a request"
    ),
    errors.NoThreadError: _unavailable(
        "NO_THREAD", "this server cannot start a thread for the call"
    ),
    errors.RateLimitedError: _exhausted("RATE_LIMIT_EXCEEDED", None, _quota),
    errors.TooManyWatchesError: _exhausted("TOO_MANY_WATCHES", None, _quota),
    errors.TooManyFiltersError: _exhausted("TOO_MANY_WATCH_FILTERS", None, _quota),
    errors.ShuttingDownError: _unavailable(
        "SHUTTING_DOWN", "this server is shutting down; use another connection"
    ),
    storage.StatementTimeoutError: _Row(
        code.DEADLINE_EXCEEDED, "STATEMENT_TIMEOUT", "the query took too long"
    ),
    storage.StatementCancelledError: _Row(
        code.CANCELLED, "CALL_CANCELLED", "the call was cancelled"
    ),
    storage.DatabaseUnavailableError: _unavailable(
        "DATABASE_UNAVAILABLE", "the database is unavailable"
    ),
}


# Rejections that are cheap to provoke, so that the log limits their rate.
_LIMITED = errors.RefusedError | errors.RateLimitedError | errors.UnauthenticatedError
REFUSALS = [row.reason for error, row in TABLE.items() if issubclass(error, _LIMITED)]


def status_of(error: Exception) -> status_pb2.Status | None:
    """Return the status of an exception, or None if the table has no row for it."""
    item, cause = _unwrapped(error)
    row = TABLE.get(type(cause))
    if row is None:
        return None
    text = row.message or str(cause)
    message = f"{item}: {text}" if item else text
    metadata = {"item": item} if item else None
    return _status(row.code, message, row.reason, *row.details(cause), metadata=metadata)


def reason_of(error: Exception) -> str:
    """Return the reason in the ErrorInfo of an exception's status."""
    row = TABLE.get(type(_unwrapped(error)[1]))
    return row.reason if row else _INTERNAL


def _unwrapped(error: Exception) -> tuple[str, Exception]:
    return (error.item, error.cause) if isinstance(error, errors.BatchItemError) else ("", error)


def internal_status(request_id: str) -> status_pb2.Status:
    """Return the status of an unexpected exception: the id of its log entry and no detail of it."""
    return _status(code.INTERNAL, "internal error", _INTERNAL, metadata={"request_id": request_id})


def _status(
    number: int, message: str, reason: str, *details: Message, metadata: dict[str, str] | None
) -> status_pb2.Status:
    """Build a google.rpc.Status with an ErrorInfo before the other details."""
    info = error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata)
    packed = []
    for detail in (info, *details):
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=number, message=message, details=packed)
