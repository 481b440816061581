"""Implement the methods of TaskService: each checks, works and converts."""

import datetime as dt
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from google.protobuf.message import Message
from grpc import ServicerContext as Context

from server.access import principal as caller
from server.access.authorization import ADMIN
from server.calls.current import current_call
from server.calls.statuses import internal_status, status_of
from server.errors import BatchItemError, InvalidRequestError, violation
from server.tasks import validation, writes
from server.tasks.conversions import event_to_proto, saturated, stats_to_proto, task_to_proto
from server.tasks.fields import parse_order
from server.tasks.filters import parse_filter, parse_watch_filter
from server.tasks.page_tokens import Tokens
from server.tasks.watches import Watches
from storage.errors import TaskNotFoundError
from storage.events import EventLog, Position
from storage.query import NEWEST_FIRST, cursor_at
from storage.repository import Origin, TaskRepository
from storage.tables import TaskRow
from taskservice.v1 import task_service_pb2 as pb
from taskservice.v1 import task_service_pb2_grpc
from taskservice.v1.task_pb2 import Task

M = TypeVar("M", bound=Message)
Row = TypeVar("Row", bound=tuple[object, ...])

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000
MAX_PAGE_BYTES = 3 * 1024 * 1024  # A gRPC client accepts 4 MiB by default.

_PURGE_BATCH = 1000
_PURGE_SAMPLE = 100

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

    def CreateTask(self, request: pb.CreateTaskRequest, context: Context) -> Task:
        validation.check_create(request)
        (row,) = writes.create(self._repository, [request], _origin())
        return self._written(row, request)

    def GetTask(self, request: pb.GetTaskRequest, context: Context) -> Task:
        validation.check(request)
        return self._to_proto(self._repository.get(request.id))

    def ListTasks(self, request: pb.ListTasksRequest, context: Context) -> pb.ListTasksResponse:
        show_deleted = request.show_deleted
        binding = "tasks", request.filter, request.order_by, show_deleted, _principal()
        found = validation.contract_violations(request)
        filter_ = validation.parse_field(found, request, "filter", parse_filter)
        order = validation.parse_field(found, request, "order_by", parse_order) or NEWEST_FIRST
        open_token = partial(self._page_tokens.open, binding=binding)
        cursor = validation.parse_field(found, request, "page_token", open_token)
        validation.reject(found)
        size = _page_size(request)
        rows = self._repository.page(
            limit=size + 1, filter_=filter_, order=order, cursor=cursor, show_deleted=show_deleted
        )
        tasks, last = _page(rows, size, self._to_proto)
        response = pb.ListTasksResponse(tasks=tasks)
        if last:
            response.next_page_token = self._page_tokens.seal(cursor_at(last, order), binding)
        if request.include_total_size:
            total = self._repository.count(filter_, show_deleted=show_deleted)
            response.total_size = saturated(total)
        return response

    def UpdateTask(self, request: pb.UpdateTaskRequest, context: Context) -> Task:
        fields = validation.check_update(request)
        (row,) = writes.update(self._repository, [request], [fields], _origin())
        return self._written(row, request)

    def DeleteTask(self, request: pb.DeleteTaskRequest, context: Context) -> Task:
        validation.check(request)
        target = writes.target_of(request.id, request.etag)
        try:
            rows = self._repository.delete([target], _origin())
        except TaskNotFoundError:
            if not request.allow_missing:
                raise
            rows = [*self._repository.find([target.task_id]).values()]
        return self._deleted(rows[0] if rows else None, request)

    def UndeleteTask(self, request: pb.UndeleteTaskRequest, context: Context) -> Task:
        validation.check(request)
        target = writes.target_of(request.id, request.etag)
        (row,) = self._repository.undelete([target], _origin())
        return self._to_proto(row)

    def GetTaskStats(self, request: pb.GetTaskStatsRequest, context: Context) -> pb.TaskStats:
        filter_ = validation.parsed(request, "filter", parse_filter)
        return stats_to_proto(self._repository.stats(filter_))

    def BatchGetTasks(
        self, request: pb.BatchGetTasksRequest, context: Context
    ) -> pb.BatchGetTasksResponse:
        validation.check_batch_get(request)
        ids = [task_id.lower() for task_id in request.ids]
        rows = self._repository.find(ids)
        writes.check_answer(rows.values())
        for number, task_id in enumerate(ids):
            if task_id not in rows:
                raise BatchItemError(f"ids[{number}]", TaskNotFoundError(task_id))
        return pb.BatchGetTasksResponse(tasks=[self._to_proto(rows[task_id]) for task_id in ids])

    def BatchCreateTasks(
        self, request: pb.BatchCreateTasksRequest, context: Context
    ) -> pb.BatchCreateTasksResponse:
        validation.check_batch_create(request)
        items = request.requests
        with writes.naming_items((item.task_id, item.request_id) for item in items):
            rows = writes.create(self._repository, items, _origin(), _ITEM)
        return pb.BatchCreateTasksResponse(tasks=map(self._written, rows, items))

    def BatchUpdateTasks(
        self, request: pb.BatchUpdateTasksRequest, context: Context
    ) -> pb.BatchUpdateTasksResponse:
        fields = validation.check_batch_update(request)
        items = request.requests
        with writes.naming_items((item.task.id, item.request_id) for item in items):
            rows = writes.update(self._repository, items, fields, _origin(), _ITEM)
        return pb.BatchUpdateTasksResponse(tasks=map(self._written, rows, items))

    def BatchDeleteTasks(
        self, request: pb.BatchDeleteTasksRequest, context: Context
    ) -> pb.BatchDeleteTasksResponse:
        validation.check_batch_delete(request)
        items = request.requests
        with writes.naming_items((item.id, "") for item in items):
            rows = writes.delete(self._repository, items, _origin())
        return pb.BatchDeleteTasksResponse(tasks=map(self._deleted, rows, items))

    def ListTaskEvents(
        self, request: pb.ListTaskEventsRequest, context: Context
    ) -> pb.ListTaskEventsResponse:
        binding = "events", request.task_id.lower(), _principal()
        open_token = partial(self._page_tokens.open, binding=binding)
        cursor = validation.parsed(request, "page_token", open_token)
        before = Position._make(cursor) if cursor else None
        size = _page_size(request)
        only_by = None if ADMIN in current_call().principal.scopes else _principal()
        events = self._events.history(
            request.task_id, limit=size + 1, before=before, only_by=only_by
        )
        if not events and before is None:
            self._repository.get(request.task_id)  # All its events may have been removed.
        page, last = _page(events, size, event_to_proto)
        response = pb.ListTaskEventsResponse(events=page)
        if last:
            response.next_page_token = self._page_tokens.seal(last.position, binding)
        return response

    def WatchTasks(
        self, request: pb.WatchTasksRequest, context: Context
    ) -> Iterator[pb.WatchTasksResponse]:
        binding = request.filter, _principal()
        found = validation.contract_violations(request)
        filter_ = validation.parse_field(found, request, "filter", parse_watch_filter)
        open_token = partial(self._resume_tokens.open, binding=binding)
        cursor = validation.parse_field(found, request, "resume_token", open_token)
        validation.reject(found)
        since = Position._make(cursor) if cursor else None
        follow = partial(self._watches.follow, filter_, since, context=context)
        try:
            for kind, row, position in follow(initial=request.send_initial_tasks):
                task = self._to_proto(row) if row else None
                token = self._resume_tokens.seal(position, binding) if position else ""
                yield pb.WatchTasksResponse(type=kind, task=task, resume_token=token)
        except Exception as error:
            yield from _end_by_rest(error)
            raise

    def PurgeTasks(self, request: pb.PurgeTasksRequest, context: Context) -> pb.PurgeTasksResponse:
        filter_ = validation.parsed(request, "filter", parse_filter)
        if filter_ is None:  # An empty selector never means "all" for a destructive call.
            reason = "FILTER_NOT_BLANK"
            raise InvalidRequestError([violation("filter", "must not be blank", reason)])
        if not request.force:
            preview = self._repository.preview_purge(filter_, sample=_PURGE_SAMPLE)
            return pb.PurgeTasksResponse(
                purge_count=saturated(preview.total), purge_sample=preview.ids
            )
        count = 0
        while purged := self._repository.purge(filter_, limit=_PURGE_BATCH):
            count += purged
        return pb.PurgeTasksResponse(purge_count=saturated(count))

    def _written(self, row: TaskRow, request: pb.CreateTaskRequest | pb.UpdateTaskRequest) -> Task:
        """Convert the result of a write, without generated values if it was only validated."""
        task = self._to_proto(row)
        if not request.validate_only:
            return task
        if isinstance(request, pb.CreateTaskRequest):
            task.id = request.task_id.lower()
            task.ClearField("created_at")
        for generated in ("etag", "updated_at", "completed_at"):  # AIP-163.
            task.ClearField(generated)
        return task

    def _deleted(self, row: TaskRow | None, request: pb.DeleteTaskRequest) -> Task:
        """Convert a deleted task; with allow_missing, there may be none."""
        return self._to_proto(row) if row else Task(id=request.id.lower())


def _end_by_rest(error: Exception) -> Iterator[pb.WatchTasksResponse]:
    """Yield the last response of a watch whose client receives no status after the others."""
    call = current_call()
    if call.is_rest and call.sent_bytes:
        status = status_of(error) or internal_status(call.request_id)
        yield pb.WatchTasksResponse(type=pb.WatchTasksResponse.TYPE_ENDED, status=status)


def _origin() -> Origin:
    return caller.origin(current_call().principal)


def _principal() -> str:
    return current_call().principal.name


def _page_size(request: pb.ListTasksRequest | pb.ListTaskEventsRequest) -> int:
    return min(request.page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


def _page(
    rows: Sequence[Row], size: int, convert: Callable[[Row], M]
) -> tuple[list[M], Row | None]:
    """Convert the first rows that fit into one response; return the last one if more follow."""
    messages: list[M] = []
    total = 0
    for row in rows[:size]:
        message = convert(row)
        total += message.ByteSize()
        if total > MAX_PAGE_BYTES:
            break
        messages.append(message)
    return messages, rows[len(messages) - 1] if len(messages) < len(rows) else None
