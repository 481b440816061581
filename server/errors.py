"""Exceptions that calls end with. `server/calls/statuses.py` gives each its status."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from google.rpc import error_details_pb2

from taskservice.v1 import task_pb2

_TOLD_CHARACTERS = 1000
_TOLD_BYTES = 2500

FieldViolation: TypeAlias = error_details_pb2.BadRequest.FieldViolation


def violation(field: str, description: str, reason: str) -> FieldViolation:
    """What is wrong with a field: for people, and in UPPER_SNAKE_CASE for programs."""
    return FieldViolation(field=field, description=description, reason=reason)  # type: ignore[call-arg]


class InvalidRequestError(Exception):
    """The request breaks rules of the contract.

    A client takes 8 KiB of trailers by default: what does not fit is counted, not told.
    """

    def __init__(self, violations: Sequence[FieldViolation]) -> None:
        text = "; ".join(f"{v.field}: {v.description}" for v in violations)
        super().__init__(text if len(text) <= _TOLD_CHARACTERS else text[:_TOLD_CHARACTERS] + "...")
        self.violations = list(violations)
        while sum(v.ByteSize() for v in self.violations) > _TOLD_BYTES:
            self.violations.pop()
        if untold := len(violations) - len(self.violations):
            self.violations.append(violation("", f"and {untold} more", "MORE_VIOLATIONS"))


class TransitionNotAllowedError(Exception):
    """A task's status does not lead to the one that was asked for."""

    def __init__(self, task_id: str, before: int, after: int) -> None:
        names = [task_pb2.TaskStatus.Name(status) for status in (before, after)]  # type: ignore[arg-type]
        super().__init__(f"{names[0]} does not lead to {names[1]}")
        self.task_id = task_id


class BatchItemError(Exception):
    """An item of a batch failed; `cause` says why, and `item` which one: "requests[17]"."""

    def __init__(self, item: str, cause: Exception) -> None:
        super().__init__(item)
        self.item = item
        self.cause = cause


class UnauthenticatedError(Exception):
    """The call bears no credentials that are good here."""


class PermissionDeniedError(Exception):
    """The caller does not have the scopes that the call needs; these are missing."""

    def __init__(self, *scopes: str) -> None:
        super().__init__("; ".join(f"the scope {scope} is needed" for scope in scopes))


class CredentialsExpiredError(Exception):
    """The credentials that a stream was begun with are not accepted any more."""


class KeysUnavailableError(Exception):
    """The keys that tokens are verified with have not been there since this process began."""

    def __init__(self) -> None:
        super().__init__("there are no keys yet to verify tokens with")


class RequestTooLargeError(Exception):
    """The request has more bytes than its method takes."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"the request has {size} bytes; at most {limit} are taken")
        self.size = size


class AnswerTooLargeError(Exception):
    """The tasks that were asked for do not fit into one answer."""

    def __init__(self, count: int) -> None:
        super().__init__(f"{count} tasks like these are more than an answer holds; ask for fewer")


class RefusedError(Exception):
    """A call is ended before it has a thread, and before its credentials are looked at."""


class TooManyCallsError(RefusedError):
    """This process has as many calls in flight as it takes."""


class TooManyOwnCallsError(RefusedError):
    """This process has as many calls of this caller in flight as it takes of one."""


class TooManyBytesError(RefusedError):
    """The requests that wait here, or those of this caller, have as many bytes as is taken."""


class TooManyWaitingError(RefusedError):
    """As many calls wait for their requests as this process takes: the oldest give way."""


class RequestTimeoutError(RefusedError):
    """The request did not arrive in time."""


class RequestMissingError(RefusedError):
    """The client closed its side of the call without a request."""


class NoThreadError(RefusedError):
    """The system gives this process no thread for the call."""


class RateLimitedError(Exception):
    """The principal calls more often than it may; `retry_seconds` is the true wait."""

    def __init__(self, principal: str, retry_seconds: float) -> None:
        super().__init__(f"more calls than a principal may make; wait {retry_seconds:.3f} s")
        self.subject = principal
        self.retry_seconds = retry_seconds


class TooManyWatchesError(Exception):
    """This process has as many watches as it takes; or the principal, when it is named."""

    def __init__(self, principal: str = "") -> None:
        whose = "a principal may have here" if principal else "this server takes"
        super().__init__(f"there are as many watches as {whose}")
        self.subject = principal


class TooManyFiltersError(Exception):
    """The caller has watches with as many different filters here as it may."""

    def __init__(self, principal: str, limit: int) -> None:
        super().__init__(
            f"a caller may watch by {limit} different filters here; watch by a wider one"
        )
        self.subject = principal


class ShuttingDownError(Exception):
    """This process is about to end."""
