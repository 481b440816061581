"""Define the exceptions of calls; `server/calls/statuses.py` maps each to its status."""

from collections.abc import Sequence
from typing import TypeAlias

from google.rpc import error_details_pb2

from taskservice.v1 import task_pb2

_MAX_CHARACTERS = 1000
_MAX_BYTES = 2500

FieldViolation: TypeAlias = error_details_pb2.BadRequest.FieldViolation


def violation(field: str, description: str, reason: str) -> FieldViolation:
    """Describe a violation; the reason, in UPPER_SNAKE_CASE, is for programs."""
    return FieldViolation(field=field, description=description, reason=reason)  # type: ignore[call-arg]


class InvalidRequestError(Exception):
    """The request breaks rules of the contract.

    A client accepts 8 KiB of trailers by default: violations beyond that are only counted.
    """

    def __init__(self, violations: Sequence[FieldViolation]) -> None:
        text = "; ".join(f"{v.field}: {v.description}" for v in violations)
        super().__init__(text if len(text) <= _MAX_CHARACTERS else text[:_MAX_CHARACTERS] + "...")
        self.violations = list(violations)
        while sum(v.ByteSize() for v in self.violations) > _MAX_BYTES:
            self.violations.pop()
        if omitted := len(violations) - len(self.violations):
            self.violations.append(violation("", f"and {omitted} more", "MORE_VIOLATIONS"))


class TransitionNotAllowedError(Exception):
    """The status of a task does not lead to the requested one."""

    def __init__(self, task_id: str, before: int, after: int) -> None:
        names = task_pb2.TaskStatus.DESCRIPTOR.values_by_number
        super().__init__(f"{names[before].name} does not lead to {names[after].name}")
        self.task_id = task_id


class BatchItemError(Exception):
    """An item of a batch, such as "requests[17]", failed with the exception `cause`."""

    def __init__(self, item: str, cause: Exception) -> None:
        super().__init__(item)
        self.item = item
        self.cause = cause


class UnauthenticatedError(Exception):
    """The call has no valid credentials."""


class PermissionDeniedError(Exception):
    """The principal lacks these scopes."""

    def __init__(self, *scopes: str) -> None:
        super().__init__("; ".join(f"the scope {scope} is needed" for scope in scopes))


class CredentialsExpiredError(Exception):
    """The credentials of an open stream are no longer valid."""


class KeysUnavailableError(Exception):
    """This process has not received the keys that verify tokens yet."""


class RequestTooLargeError(Exception):
    """The request has more bytes than its method accepts."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"the request has {size} bytes; at most {limit} are taken")
        self.size = size


class AnswerTooLargeError(Exception):
    """The requested tasks do not fit into one response."""

    def __init__(self, count: int) -> None:
        super().__init__(f"{count} tasks like these are more than an answer holds; ask for fewer")


class RefusedError(Exception):
    """A call is rejected before it has a thread, and before its client is authenticated."""


class TooManyCallsError(RefusedError):
    """The limit of calls in flight in this process is reached."""


class TooManyOwnCallsError(RefusedError):
    """The limit of calls in flight of one client is reached."""


class TooManyBytesError(RefusedError):
    """The limit of bytes of waiting requests, of all clients or of this one, is reached."""


class TooManyWaitingError(RefusedError):
    """The limit of calls that wait for their requests is reached: the oldest is rejected."""


class RequestTimeoutError(RefusedError):
    """The request did not arrive in time."""


class RequestMissingError(RefusedError):
    """The client closed its side of the call without a request."""


class NoThreadError(RefusedError):
    """The operating system has no thread for the call."""


class RateLimitedError(Exception):
    """The principal exceeds its rate; `retry_seconds` is the time until it may call again."""

    def __init__(self, principal: str, retry_seconds: float) -> None:
        super().__init__(f"more calls than a principal may make; wait {retry_seconds:.3f} s")
        self.subject = principal
        self.retry_seconds = retry_seconds


class TooManyWatchesError(Exception):
    """The limit of watches, of this process or of the named principal, is reached."""

    def __init__(self, principal: str = "") -> None:
        whose = "a principal may have here" if principal else "this server takes"
        super().__init__(f"there are as many watches as {whose}")
        self.subject = principal


class TooManyFiltersError(Exception):
    """The limit of different filters in the watches of a client is reached."""

    def __init__(self, principal: str, limit: int) -> None:
        super().__init__(
            f"a caller may watch by {limit} different filters here; watch by a wider one"
        )
        self.subject = principal


class ShuttingDownError(Exception):
    """This process is shutting down."""
