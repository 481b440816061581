"""Exit codes by kind of error, and an error in one line."""

from enum import IntEnum

import grpc
import typer

from taskservice_client import TaskServiceError


class ExitCode(IntEnum):
    """The exit codes of all commands; Ctrl-C gives 130, a broken pipe 141."""

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    NOT_FOUND = 3
    CONFLICT = 4
    DENIED = 5
    UNAVAILABLE = 6
    INVALID = 7


_BY_STATUS = {
    grpc.StatusCode.NOT_FOUND: ExitCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS: ExitCode.CONFLICT,
    grpc.StatusCode.ABORTED: ExitCode.CONFLICT,
    grpc.StatusCode.FAILED_PRECONDITION: ExitCode.CONFLICT,
    grpc.StatusCode.UNAUTHENTICATED: ExitCode.DENIED,
    grpc.StatusCode.PERMISSION_DENIED: ExitCode.DENIED,
    grpc.StatusCode.UNAVAILABLE: ExitCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: ExitCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED: ExitCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ExitCode.UNAVAILABLE,
    grpc.StatusCode.INVALID_ARGUMENT: ExitCode.INVALID,
    grpc.StatusCode.OUT_OF_RANGE: ExitCode.INVALID,
}

_NO_ANSWER = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
}


class CommandError(typer.TyperException):
    """A command failed: one line for people, and an exit code."""

    def __init__(self, message: str, code: ExitCode = ExitCode.USAGE) -> None:
        super().__init__(message)
        self.exit_code = code


class CallFailedError(CommandError):
    """A call of the service failed."""

    def __init__(self, error: TaskServiceError, *, verbose: bool) -> None:
        message = error.message if error.reason else f"{_prefix(error.code)}: {error.message}"
        if error.written:
            message += f"; {len(error.written)} tasks were written before"
        if verbose:
            parts = [error.code.name, error.reason, error.request_id and f"id {error.request_id}"]
            message += f" [{', '.join(filter(None, parts))}]"
        super().__init__(message, exit_code(error))


def exit_code(error: TaskServiceError) -> ExitCode:
    """Return the exit code for a failed call."""
    return _BY_STATUS.get(error.code, ExitCode.UNEXPECTED)


def _prefix(code: grpc.StatusCode) -> str:
    """Describe a code that another program sent, such as a proxy or gRPC itself."""
    if code in _NO_ANSWER:
        return "no answer from the service"
    return code.name.lower().replace("_", " ")
