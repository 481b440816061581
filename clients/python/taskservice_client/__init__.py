"""A client of Task Service: safe retries, typed errors, pages and watches.

    with TaskClient("127.0.0.1:50051") as tasks:
        task = tasks.create(title="write the report", priority="HIGH")
        tasks.update(task.id, status="COMPLETED")

`AsyncTaskClient` has the same methods for asyncio.
"""

from taskservice.v1.task_event_pb2 import TaskEvent
from taskservice.v1.task_pb2 import Task, TaskPriority, TaskStatus
from taskservice.v1.task_service_pb2 import (
    CreateTaskRequest,
    DeleteTaskRequest,
    PurgeTasksResponse,
    TaskStats,
    UpdateTaskRequest,
)
from taskservice_client._async.client import AsyncTaskClient
from taskservice_client._async.watch import AsyncWatch
from taskservice_client._sync.client import TaskClient
from taskservice_client._sync.watch import Watch
from taskservice_client.channels import Tls
from taskservice_client.errors import (
    AlreadyExists,
    ClosedClientError,
    Conflict,
    DeadlineExceeded,
    EtagMismatch,
    ForkedClientError,
    InternalError,
    InvalidRequest,
    PermissionDenied,
    PreconditionFailed,
    RateLimited,
    RequestIdReused,
    ResourceExhausted,
    ResumeTokenExpired,
    ServiceUnavailable,
    TaskDeleted,
    TaskExists,
    TaskNotDeleted,
    TaskNotFound,
    TaskServiceError,
    TooLarge,
    TransactionConflict,
    TransitionNotAllowed,
    Unauthenticated,
    Violation,
)
from taskservice_client.watching import FileTokenStore, TokenStore, WatchEvent, WatchEventType

__all__ = [
    "AlreadyExists",
    "AsyncTaskClient",
    "AsyncWatch",
    "ClosedClientError",
    "Conflict",
    "CreateTaskRequest",
    "DeadlineExceeded",
    "DeleteTaskRequest",
    "EtagMismatch",
    "FileTokenStore",
    "ForkedClientError",
    "InternalError",
    "InvalidRequest",
    "PermissionDenied",
    "PreconditionFailed",
    "PurgeTasksResponse",
    "RateLimited",
    "RequestIdReused",
    "ResourceExhausted",
    "ResumeTokenExpired",
    "ServiceUnavailable",
    "Task",
    "TaskClient",
    "TaskDeleted",
    "TaskEvent",
    "TaskExists",
    "TaskNotDeleted",
    "TaskNotFound",
    "TaskPriority",
    "TaskServiceError",
    "TaskStats",
    "TaskStatus",
    "Tls",
    "TokenStore",
    "TooLarge",
    "TransactionConflict",
    "TransitionNotAllowed",
    "Unauthenticated",
    "UpdateTaskRequest",
    "Violation",
    "Watch",
    "WatchEvent",
    "WatchEventType",
]
