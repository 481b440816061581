"""Decide whether and when a failed call is repeated."""

from __future__ import annotations

import random

import grpc

from taskservice_client.errors import TaskServiceError

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0

# The call was refused before it began: nothing was written.
_REFUSED = {"SHUTTING_DOWN", "NO_THREAD", "KEYS_UNAVAILABLE"}
# The call may have been executed.
_UNCERTAIN = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}


def may_repeat(error: TaskServiceError, *, is_safe: bool) -> bool:
    """Return whether to repeat a call; `is_safe` if it can be executed twice."""
    if error.reason in _REFUSED:
        return True
    if error.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return error.retry_after is not None
    if error.reason == "STATEMENT_TIMEOUT":  # The same statement would take as long again.
        return False
    # A purge has many transactions: those before a conflict are committed.
    return is_safe and (error.code in _UNCERTAIN or error.reason == "TRANSACTION_CONFLICT")


def may_have_run(error: TaskServiceError) -> bool:
    """Return whether the attempt that failed may have been executed."""
    return error.code in _UNCERTAIN and error.reason not in _REFUSED


def pause_seconds(error: TaskServiceError) -> float:
    """Return the pause before another attempt: what the service asks, or a random, growing one."""
    if error.retry_after is not None:
        return error.retry_after
    return backoff_seconds(error.attempts, LONGEST_PAUSE_SECONDS)


def backoff_seconds(failures: int, longest: float) -> float:
    """Return a random pause whose bound doubles with each failure."""
    bound = min(longest, FIRST_PAUSE_SECONDS * 2 ** min(failures, 10))
    return random.uniform(bound / 10, bound)  # noqa: S311
