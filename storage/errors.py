"""Exceptions of storage, in terms of tasks, and the translation of the driver's errors to them."""

import psycopg2

# SQLSTATE: a primary that became a replica; shutdown, crash, start-up, dropped database and idle
# timeouts; too few connections or too little memory. Class 08 is "connection exception".
_UNAVAILABLE = {"25006", "57P01", "57P02", "57P03", "57P04", "57P05"}
_UNAVAILABLE_CLASSES = {"08", "53"}
_SHORT_OF_RESOURCES = {"53000", "53100", "53200", "53400"}
_CONFLICT = {"40001", "40P01"}
_QUERY_CANCELED = "57014"
_SYNTAX_OR_ACCESS_CLASS = "42"


class StorageError(Exception):
    """The base of the exceptions of storage."""


class TaskError(StorageError):
    """An error about one task, or about the request that wrote it."""

    def __init__(self, task_id: str, request_id: str = "") -> None:
        super().__init__(task_id)
        self.task_id = task_id
        self.request_id = request_id


class TaskNotFoundError(TaskError):
    """There is no task with this id."""


class TaskExistsError(TaskError):
    """There is a task with this id already."""


class TaskDeletedError(TaskError):
    """The task is deleted."""


class TaskNotDeletedError(TaskError):
    """The task is not deleted."""


class VersionMismatchError(TaskError):
    """The task has another version than the one that the write was meant for."""


class RequestIdReusedError(StorageError):
    """The principal used this request id for a request with another body."""

    def __init__(self, request_id: str) -> None:
        super().__init__(request_id)
        self.request_id = request_id


class EventsRemovedError(StorageError):
    """Events that the reader has not seen are no longer kept, or were another database's."""


class TransactionConflictError(StorageError):
    """The database gave up the transaction for another one, more often than it is retried."""


class StatementTimeoutError(StorageError):
    """The statement took longer than it may, and was ended."""


class StatementCancelledError(StorageError):
    """The call that the statement was for has ended."""


class DatabaseUnavailableError(StorageError):
    """No connection, a lost one, or a server that starts, stops or is read-only."""

    def __init__(self, message: str, *, pool_exhausted: bool = False) -> None:
        super().__init__(message)
        self.pool_exhausted = pool_exhausted


class ConstraintError(StorageError):
    """A constraint refused the row. The row itself is the caller's, and does not stand here."""

    def __init__(self, constraint: str) -> None:
        super().__init__(f"the row breaks {constraint}")
        self.constraint = constraint


class StatementFailedError(StorageError):
    """The database refused the statement, by its SQLSTATE and primary message."""

    def __init__(self, sqlstate: str | None, message: str | None) -> None:
        super().__init__(f"{sqlstate}: {message}")


def translated(error: Exception, *, is_cancelled: bool = False) -> StorageError:
    """Return the StorageError to raise `from None`: the driver's text may quote the row."""
    error = getattr(error, "orig", error)
    if not isinstance(error, psycopg2.Error):
        return StatementFailedError(None, type(error).__name__)
    sqlstate, details = error.pgcode, error.diag
    if sqlstate == _QUERY_CANCELED:
        return StatementCancelledError() if is_cancelled else StatementTimeoutError()
    if sqlstate in _CONFLICT:
        return TransactionConflictError(details.message_primary)
    if _is_unavailable(error):
        return DatabaseUnavailableError(details.message_primary or str(error).strip())
    if details.constraint_name:
        return ConstraintError(details.constraint_name)
    # The messages of this class name only parts of the schema; others may quote a value.
    names_schema = (sqlstate or "").startswith(_SYNTAX_OR_ACCESS_CLASS)
    return StatementFailedError(sqlstate, details.message_primary if names_schema else None)


def ends_connection(error: BaseException) -> bool:
    """Return whether the connections to the server must be replaced after this error."""
    return getattr(error, "pgcode", None) not in _SHORT_OF_RESOURCES and _is_unavailable(error)


def _is_unavailable(error: BaseException) -> bool:
    sqlstate = getattr(error, "pgcode", None)
    if sqlstate is None:  # No answer of the server: the socket is closed, or was never opened.
        return isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError)
    return sqlstate in _UNAVAILABLE or sqlstate[:2] in _UNAVAILABLE_CLASSES
