"""Translation of the driver's errors to `storage.errors`."""

import psycopg2

from storage.cancellation import Cancellation
from storage.errors import (
    ConstraintError,
    DatabaseUnavailableError,
    StatementCancelledError,
    StatementFailedError,
    StatementTimeoutError,
    StorageError,
    TransactionConflictError,
)

# SQLSTATE: a primary that became a replica; shutdown, crash, start-up, dropped database and idle
# timeouts; too few connections or too little memory. Class 08 is "connection exception".
_UNAVAILABLE = {"25006", "57P01", "57P02", "57P03", "57P04", "57P05"}
_UNAVAILABLE_CLASSES = {"08", "53"}
_SHORT_OF_RESOURCES = {"53000", "53100", "53200", "53400"}
_CONFLICT = {"40001", "40P01"}
_QUERY_CANCELED = "57014"
_SYNTAX_OR_ACCESS_CLASS = "42"


def translated(error: Exception, cancellation: Cancellation | None = None) -> StorageError:
    """Return the StorageError for an error of the driver, or one that SQLAlchemy wraps.

    The error itself must not become its cause: its text may quote the row.
    """
    error = getattr(error, "orig", error)
    if not isinstance(error, psycopg2.Error):
        return StatementFailedError(None, type(error).__name__)
    sqlstate, details = error.pgcode, error.diag
    if sqlstate == _QUERY_CANCELED:
        is_cancelled = cancellation is not None and cancellation.cancelled
        return StatementCancelledError() if is_cancelled else StatementTimeoutError()
    if sqlstate in _CONFLICT:
        return TransactionConflictError(details.message_primary)
    if _is_unavailable(error):
        return DatabaseUnavailableError(details.message_primary or str(error).strip())
    if details.constraint_name:
        return ConstraintError(details.constraint_name)
    return StatementFailedError(sqlstate, _without_values(sqlstate, details.message_primary))


def _without_values(sqlstate: str | None, message: str | None) -> str | None:
    """Return the message only where it names nothing but the schema; others may quote a value."""
    return message if sqlstate and sqlstate.startswith(_SYNTAX_OR_ACCESS_CLASS) else None


def ends_connection(error: BaseException) -> bool:
    """Return whether the connections to the server must be replaced after this error."""
    return getattr(error, "pgcode", None) not in _SHORT_OF_RESOURCES and _is_unavailable(error)


def _is_unavailable(error: BaseException) -> bool:
    sqlstate = getattr(error, "pgcode", None)
    if sqlstate is None:  # No answer of the server: the socket is closed, or was never opened.
        return isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError)
    return sqlstate in _UNAVAILABLE or sqlstate[:2] in _UNAVAILABLE_CLASSES
