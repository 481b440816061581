"""The errors of calls, made from google.rpc.ErrorInfo.

    TaskServiceError
    ├── InvalidRequest              INVALID_ARGUMENT, with `violations`
    ├── TaskNotFound                NOT_FOUND
    ├── AlreadyExists               ALREADY_EXISTS
    │   ├── TaskExists                  the task_id is taken
    │   ├── TaskNotDeleted              the task to undelete is not deleted
    │   └── RequestIdReused             the request_id belongs to another request
    ├── Conflict                    ABORTED
    │   ├── EtagMismatch                the task was written since, with `current`
    │   └── TransactionConflict         concurrent writes prevented this one
    ├── PreconditionFailed          FAILED_PRECONDITION
    │   ├── TaskDeleted                 undelete it first
    │   └── TransitionNotAllowed        the status does not allow this transition
    ├── ResumeTokenExpired          OUT_OF_RANGE
    ├── Unauthenticated             UNAUTHENTICATED
    ├── PermissionDenied            PERMISSION_DENIED
    ├── ResourceExhausted           RESOURCE_EXHAUSTED
    │   ├── RateLimited                 the rate limit of the principal
    │   └── TooLarge                    the request or its response exceeds a size limit
    ├── ServiceUnavailable          UNAVAILABLE
    ├── DeadlineExceeded            DEADLINE_EXCEEDED
    └── InternalError               INTERNAL, and any other code

A reason that is not known here is treated by its code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, NamedTuple, cast

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from taskservice.v1.task_pb2 import Task

_DETAILS = "grpc-status-details-bin"
_ITEM = re.compile(r"requests\[(\d+)\]")


class Violation(NamedTuple):
    """One rule that a request breaks."""

    field: str
    description: str
    reason: str


class TaskServiceError(Exception):
    """A call failed."""

    code: grpc.StatusCode
    reason: str
    """The reason in ErrorInfo, for example "TASK_NOT_FOUND"; empty if another program answered."""
    message: str
    request_id: str
    """The id under which the log of the service has the call."""
    retry_after: float | None
    """The seconds after which the service asks to repeat the call."""
    violations: Sequence[Violation]
    """The rules that the request breaks; for InvalidRequest only."""
    item: int | None
    """The index of the item of a batch that caused the error."""
    written: Sequence[Task]
    """The tasks that earlier parts of the same batch have written."""
    attempts: int
    """How often the call was sent, without the retries of gRPC itself."""
    may_have_run: bool
    """Whether an attempt before the last one may have been executed."""

    advice: ClassVar[str] = "Report the request id to the operator."

    def __init__(self, code: grpc.StatusCode, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.request_id = ""
        self.retry_after = None
        self.violations = ()
        self.item = None
        self.written = ()
        self.attempts = 1
        self.may_have_run = False

    def __str__(self) -> str:
        """Return the message, the code, the reason, the request id, and what to do."""
        parts = [self.code.name, self.reason, self.request_id and f"request {self.request_id}"]
        return f"{self.message} ({', '.join(filter(None, parts))}). {self.advice}"


class InvalidRequest(TaskServiceError):
    """The request breaks rules of the contract."""

    advice = "Correct the request: `violations` lists the fields."


class TaskNotFound(TaskServiceError):
    """The task does not exist."""

    advice = "Check the id: the task was purged, or never existed."


class AlreadyExists(TaskServiceError):
    """What the call makes exists."""

    advice = "Do not repeat: the state of the task must change first."


class TaskExists(AlreadyExists):
    """A task with this id exists."""

    advice = "Choose another task_id, or none."


class TaskNotDeleted(AlreadyExists):
    """The task to undelete is not deleted."""

    advice = "Nothing needs to be done."


class RequestIdReused(AlreadyExists):
    """The request_id was used with another request."""

    advice = "Generate a new request_id for each distinct request."


class Conflict(TaskServiceError):
    """Another write came first."""

    advice = "Repeat the call."


class EtagMismatch(Conflict):
    """The task has been written since the etag was read."""

    advice = "Apply the change to `current`, and send its etag."
    current: Task | None = None
    """The task as it is; None if it could not be read."""


class TransactionConflict(Conflict):
    """Concurrent writes kept this one from being committed."""

    advice = "Repeat the call after `retry_after`."


class PreconditionFailed(TaskServiceError):
    """The state of the task does not allow the call."""

    advice = "Do not repeat: the state of the task must change first."


class TaskDeleted(PreconditionFailed):
    """The task is deleted."""

    advice = "Undelete the task first."


class TransitionNotAllowed(PreconditionFailed):
    """The status of the task does not allow this transition."""


class ResumeTokenExpired(TaskServiceError):
    """The events after the resume token are no longer stored."""

    advice = "Start a new watch with the initial tasks."


class Unauthenticated(TaskServiceError):
    """The call has no valid credentials."""

    advice = "Obtain credentials."


class PermissionDenied(TaskServiceError):
    """The principal lacks a scope, which the message names."""

    advice = "Obtain credentials with this scope."


class ResourceExhausted(TaskServiceError):
    """A limit of the service is reached."""

    advice = "Send fewer calls at once; repeat after `retry_after`."


class RateLimited(ResourceExhausted):
    """The principal exceeds its rate limit."""

    advice = "Repeat after `retry_after`, which is exact."


class TooLarge(ResourceExhausted):
    """The request, or the response to a batch, exceeds a size limit."""

    advice = "Send less."


class ServiceUnavailable(TaskServiceError):
    """The service or its database is unreachable."""

    advice = "Repeat later; a write may have taken place."


class DeadlineExceeded(TaskServiceError):
    """The call did not end before its deadline."""

    advice = "Repeat with a longer timeout or a narrower filter; a write may have taken place."


class InternalError(TaskServiceError):
    """The service failed unexpectedly."""


class ForkedClientError(RuntimeError):
    """The client was made before a fork, which gRPC's connections do not survive."""


class ClosedClientError(RuntimeError):
    """The client is closed."""


_BY_CODE: Mapping[grpc.StatusCode, type[TaskServiceError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: TaskNotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.ABORTED: Conflict,
    grpc.StatusCode.FAILED_PRECONDITION: PreconditionFailed,
    grpc.StatusCode.OUT_OF_RANGE: ResumeTokenExpired,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE: ServiceUnavailable,
    grpc.StatusCode.CANCELLED: ServiceUnavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
}
_BY_REASON: Mapping[str, type[TaskServiceError]] = {
    "TASK_EXISTS": TaskExists,
    "TASK_NOT_DELETED": TaskNotDeleted,
    "REQUEST_ID_REUSED": RequestIdReused,
    "ETAG_MISMATCH": EtagMismatch,
    "TRANSACTION_CONFLICT": TransactionConflict,
    "TASK_DELETED": TaskDeleted,
    "STATUS_TRANSITION_NOT_ALLOWED": TransitionNotAllowed,
    "RATE_LIMIT_EXCEEDED": RateLimited,
    "REQUEST_TOO_LARGE": TooLarge,
    "ANSWER_TOO_LARGE": TooLarge,
}


def error_of(failure: grpc.RpcError, request_id: str) -> TaskServiceError:
    """Make the error of a failed call, of either kind of client."""
    call = cast(grpc.Call, failure)  # As are both implementations.
    error = _error(call.code(), call.details() or "", call.trailing_metadata() or ())
    error.request_id = error.request_id or request_id
    error.__cause__ = failure
    return error


def in_batch(error: TaskServiceError, written: Sequence[Task]) -> TaskServiceError:
    """Add what earlier batches wrote, and count the items from the first of them."""
    error.written = written
    error.violations = [
        each._replace(field=_ITEM.sub(lambda item: _shifted(item, len(written)), each.field))
        for each in error.violations
    ]
    if error.item is not None:
        error.item += len(written)
    return error


def _shifted(item: re.Match[str], by: int) -> str:
    return f"requests[{int(item[1]) + by}]"


def _error(
    code: grpc.StatusCode, message: str, metadata: Iterable[tuple[str, str | bytes]]
) -> TaskServiceError:
    status = _status(metadata)
    info = error_details_pb2.ErrorInfo()
    _take(status, info)
    kind = _BY_REASON.get(info.reason) or _BY_CODE.get(code, InternalError)
    error = kind(code, message, info.reason)
    error.request_id = info.metadata.get("request_id", "")
    retry, bad = error_details_pb2.RetryInfo(), error_details_pb2.BadRequest()
    if _take(status, retry):
        error.retry_after = retry.retry_delay.ToTimedelta().total_seconds()
    if _take(status, bad):
        error.violations = [
            Violation(each.field, each.description, getattr(each, "reason", ""))
            for each in bad.field_violations
        ]
    if found := _ITEM.match(info.metadata.get("item", "")):
        error.item = int(found[1])
    return error


def _status(metadata: Iterable[tuple[str, str | bytes]]) -> status_pb2.Status:
    status = status_pb2.Status()
    for key, value in metadata:
        if key == _DETAILS and isinstance(value, bytes):
            try:
                status.ParseFromString(value)
            except DecodeError:
                status.Clear()  # Not of this service: a proxy answered.
    return status


def _take(status: status_pb2.Status, message: Message) -> bool:
    """Copy the detail of the message's type into it, if there is one."""
    return any(detail.Unpack(message) for detail in status.details)
