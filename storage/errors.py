"""Exceptions of storage, in terms of tasks; none is a driver's."""


class StorageError(Exception):
    """The base of the exceptions of storage."""


class TaskError(StorageError):
    """An error about one task; it may be known by the request that wrote it."""

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
