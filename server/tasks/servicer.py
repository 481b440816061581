"""Implement the methods of TaskService: each checks, works and converts."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import grpc
from google.protobuf.message import Message

from server import principal as caller
from server.access.authorization import ADMIN
from server.calls.current import current_call
from server.errors import InvalidRequestError, violation
from server.tasks import writes
from server.tasks.conversions import (
    event_to_proto,
    saturated,
    stats_to_proto,
    task_to_proto,
    version_of,
    without_generated,
)
from server.tasks.filters import parse_filter, parse_watch_filter
from server.tasks.orders import parse_order
from server.tasks.page_tokens import Tokens
from server.tasks.validation import (
    Violations,
    check,
    check_batch_create,
    check_batch_delete,
    check_batch_get,
    check_batch_update,
    check_create,
    check_update,
)
from server.tasks.watch import Notice
from server.tasks.watches import Watches
from storage.errors import TaskNotFoundError
from storage.events import EventLog, Position
from storage.query import NEWEST_FIRST, Cursor, Filter, Sort, cursor_at
from storage.repository import Origin, Target, TaskRepository
from storage.tables import TaskRow
from taskservice.v1 import task_service_pb2_grpc
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    BatchCreateTasksRequest,
    BatchCreateTasksResponse,
    BatchDeleteTasksRequest,
    BatchDeleteTasksResponse,
    BatchGetTasksRequest,
    BatchGetTasksResponse,
    BatchUpdateTasksRequest,
    BatchUpdateTasksResponse,
    CreateTaskRequest,
    DeleteTaskRequest,
    GetTaskRequest,
    GetTaskStatsRequest,
    ListTaskEventsRequest,
    ListTaskEventsResponse,
    ListTasksRequest,
    ListTasksResponse,
    PurgeTasksRequest,
    PurgeTasksResponse,
    TaskStats,
    UndeleteTaskRequest,
    UpdateTaskRequest,
    WatchTasksRequest,
    WatchTasksResponse,
)

M = TypeVar("M", bound=Message)

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000

# Below the 4 MiB that a gRPC client accepts by default.
MAX_PAGE_BYTES = 3 * 1024 * 1024

_PURGE_BATCH = 1000
_PURGE_SAMPLE = 100

_BLANK_FILTER = violation("filter", "must not be blank", "FILTER_NOT_BLANK")

_ITEM = "requests[{}]."


class TaskServicer(task_service_pb2_grpc.TaskServiceServicer):
    """The RPCs. They raise exceptions of the table of statuses, and never set a status."""

    def __init__(
        self,
        repository: TaskRepository,
        events: EventLog,
        watches: Watches,
        keys: Sequence[bytes],
        *,
        deleted_retention: dt.timedelta,
    ) -> None:
        self._to_proto = partial(task_to_proto, retention=deleted_retention)
        self._repository = repository
        self._events = events
        self._watches = watches
        self._page_tokens = Tokens(keys, "page")
        self._resume_tokens = Tokens(keys, "resume")

    def CreateTask(self, request: CreateTaskRequest, context: grpc.ServicerContext) -> Task:
        check_create(request)
        (row,) = writes.create(self._repository, [request], _origin())
        return self._written(row, request)

    def GetTask(self, request: GetTaskRequest, context: grpc.ServicerContext) -> Task:
        check(request)
        return self._to_proto(self._repository.get(request.id))

    def ListTasks(
        self, request: ListTasksRequest, context: grpc.ServicerContext
    ) -> ListTasksResponse:
        query = self._check_list(request)
        size = self._page_size(request.page_size)
        rows = self._repository.page(limit=size + 1, **query._asdict())
        tasks = list(_fitting(map(self._to_proto, rows[:size])))
        response = ListTasksResponse(tasks=tasks)
        if len(tasks) < len(rows):
            last = cursor_at(rows[len(tasks) - 1], query.order)
            response.next_page_token = self._page_tokens.seal(last, *_list_binding(request))
        if request.include_total_size:
            response.total_size = saturated(
                self._repository.count(query.filter_, show_deleted=query.show_deleted)
            )
        return response

    def UpdateTask(self, request: UpdateTaskRequest, context: grpc.ServicerContext) -> Task:
        fields = check_update(request)
        (row,) = writes.update(self._repository, [request], [fields], _origin())
        return self._written(row, request)

    def DeleteTask(self, request: DeleteTaskRequest, context: grpc.ServicerContext) -> Task:
        check(request)
        target = Target(request.id.lower(), version_of(request.etag))
        try:
            (row,) = self._repository.delete([target], _origin())
        except TaskNotFoundError:
            if not request.allow_missing:
                raise
            return self._missing(target.task_id)
        return self._to_proto(row)

    def UndeleteTask(self, request: UndeleteTaskRequest, context: grpc.ServicerContext) -> Task:
        check(request)
        target = Target(request.id.lower(), version_of(request.etag))
        (row,) = self._repository.undelete([target], _origin())
        return self._to_proto(row)

    def GetTaskStats(
        self, request: GetTaskStatsRequest, context: grpc.ServicerContext
    ) -> TaskStats:
        filter_ = self._check_filter(request)
        return stats_to_proto(self._repository.stats(filter_))

    def BatchGetTasks(
        self, request: BatchGetTasksRequest, context: grpc.ServicerContext
    ) -> BatchGetTasksResponse:
        check_batch_get(request)
        ids = [task_id.lower() for task_id in request.ids]
        rows = self._repository.find(ids)
        writes.check_answer(rows.values())
        with writes.naming_items("ids", ((task_id, "") for task_id in ids)):
            for task_id in ids:
                if task_id not in rows:
                    raise TaskNotFoundError(task_id)
        return BatchGetTasksResponse(tasks=[self._to_proto(rows[task_id]) for task_id in ids])

    def BatchCreateTasks(
        self, request: BatchCreateTasksRequest, context: grpc.ServicerContext
    ) -> BatchCreateTasksResponse:
        check_batch_create(request)
        items = request.requests
        with writes.naming_items("requests", ((item.task_id, item.request_id) for item in items)):
            rows = writes.create(self._repository, items, _origin(), _ITEM)
        return BatchCreateTasksResponse(tasks=map(self._written, rows, items))

    def BatchUpdateTasks(
        self, request: BatchUpdateTasksRequest, context: grpc.ServicerContext
    ) -> BatchUpdateTasksResponse:
        fields = check_batch_update(request)
        items = request.requests
        with writes.naming_items("requests", ((item.task.id, item.request_id) for item in items)):
            rows = writes.update(self._repository, items, fields, _origin(), _ITEM)
        return BatchUpdateTasksResponse(tasks=map(self._written, rows, items))

    def BatchDeleteTasks(
        self, request: BatchDeleteTasksRequest, context: grpc.ServicerContext
    ) -> BatchDeleteTasksResponse:
        check_batch_delete(request)
        items = request.requests
        with writes.naming_items("requests", ((item.id, "") for item in items)):
            rows = writes.delete(self._repository, items, _origin())
        return BatchDeleteTasksResponse(
            tasks=[
                self._to_proto(row) if row else Task(id=item.id.lower())
                for row, item in zip(rows, items, strict=True)
            ]
        )

    def ListTaskEvents(
        self, request: ListTaskEventsRequest, context: grpc.ServicerContext
    ) -> ListTaskEventsResponse:
        before = self._check_history(request)
        size = self._page_size(request.page_size)
        only_by = None if ADMIN in current_call().principal.scopes else _principal()
        events = self._events.history(
            request.task_id, limit=size + 1, before=before, only_by=only_by
        )
        if not events and before is None:
            self._repository.get(request.task_id)  # All its events may have been removed.
        page = list(_fitting(map(event_to_proto, events[:size])))
        response = ListTaskEventsResponse(events=page)
        if len(page) < len(events):
            last = events[len(page) - 1].position
            response.next_page_token = self._page_tokens.seal(last, *_history_binding(request))
        return response

    def WatchTasks(
        self, request: WatchTasksRequest, context: grpc.ServicerContext
    ) -> Iterator[WatchTasksResponse]:
        filter_, position = self._check_watch(request)
        for notice in self._watches.follow(
            filter_, position, initial=request.send_initial_tasks, context=context
        ):
            yield self._watch_response(notice, request)

    def PurgeTasks(
        self, request: PurgeTasksRequest, context: grpc.ServicerContext
    ) -> PurgeTasksResponse:
        filter_ = self._check_filter(request)
        if filter_ is None:  # An empty selector never means "all" for a destructive call.
            raise InvalidRequestError([_BLANK_FILTER])
        if not request.force:
            preview = self._repository.preview_purge(filter_, sample=_PURGE_SAMPLE)
            return PurgeTasksResponse(
                purge_count=saturated(preview.total), purge_sample=preview.ids
            )
        count = 0
        while purged := self._repository.purge(filter_, limit=_PURGE_BATCH):
            count += purged
        return PurgeTasksResponse(purge_count=saturated(count))

    def _check_list(self, request: ListTasksRequest) -> _ListQuery:
        def open_token(token: str) -> Cursor:
            return self._page_tokens.open(token, *_list_binding(request))

        violations = Violations(request)
        query = _ListQuery(
            filter_=violations.parse("filter", parse_filter, request.filter, None),
            order=violations.parse("order_by", parse_order, request.order_by, NEWEST_FIRST),
            cursor=violations.parse("page_token", open_token, request.page_token, None),
            show_deleted=request.show_deleted,
        )
        violations.raise_any()
        return query

    def _check_history(self, request: ListTaskEventsRequest) -> Position | None:
        def open_token(token: str) -> Position:
            position: tuple[Any, ...] = self._page_tokens.open(token, *_history_binding(request))
            return Position(*position)

        violations = Violations(request)
        before = violations.parse("page_token", open_token, request.page_token, None)
        violations.raise_any()
        return before

    def _check_watch(self, request: WatchTasksRequest) -> tuple[Filter | None, Position | None]:
        def open_token(token: str) -> Position:
            position: tuple[Any, ...] = self._resume_tokens.open(token, *_watch_binding(request))
            return Position(*position)

        violations = Violations(request)
        filter_ = violations.parse("filter", parse_watch_filter, request.filter, None)
        position = violations.parse("resume_token", open_token, request.resume_token, None)
        violations.raise_any()
        return filter_, position

    def _check_filter(self, request: GetTaskStatsRequest | PurgeTasksRequest) -> Filter | None:
        violations = Violations(request)
        filter_ = violations.parse("filter", parse_filter, request.filter, None)
        violations.raise_any()
        return filter_

    def _written(self, row: TaskRow, request: CreateTaskRequest | UpdateTaskRequest) -> Task:
        """Convert the result of a write, without generated values if it was only validated."""
        task = self._to_proto(row)
        if not request.validate_only:
            return task
        if isinstance(request, CreateTaskRequest):
            task.id = request.task_id.lower()
            task.ClearField("created_at")
        return without_generated(task)

    def _page_size(self, asked: int) -> int:
        return min(asked or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)

    def _watch_response(self, notice: Notice, request: WatchTasksRequest) -> WatchTasksResponse:
        token = ""
        if notice.position is not None:
            token = self._resume_tokens.seal(notice.position, *_watch_binding(request))
        task = self._to_proto(notice.row) if notice.row else None
        return WatchTasksResponse(type=notice.kind, task=task, resume_token=token)

    def _missing(self, task_id: str) -> Task:
        """Return the response for a task that is already deleted or does not exist."""
        try:
            return self._to_proto(self._repository.get(task_id))
        except TaskNotFoundError:
            return Task(id=task_id)


class _ListQuery(NamedTuple):
    """The parameters of a page of tasks."""

    filter_: Filter | None
    order: tuple[Sort, ...]
    cursor: Cursor | None
    show_deleted: bool


def _origin() -> Origin:
    return caller.origin(current_call().principal)


def _principal() -> str:
    return current_call().principal.name


# The bindings of tokens.


def _list_binding(request: ListTasksRequest) -> tuple[object, ...]:
    return "tasks", request.filter, request.order_by, request.show_deleted, _principal()


def _history_binding(request: ListTaskEventsRequest) -> tuple[object, ...]:
    return "events", request.task_id.lower(), _principal()


def _watch_binding(request: WatchTasksRequest) -> tuple[object, ...]:
    return request.filter, _principal()


def _fitting(messages: Iterable[M]) -> Iterator[M]:
    """Return the first messages that fit into one response together."""
    total = 0
    for message in messages:
        total += message.ByteSize()
        if total > MAX_PAGE_BYTES:
            return
        yield message
