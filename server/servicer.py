"""The calls of TaskService: each checks, works and converts."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import grpc
import uuid_utils

from server.conversions import (
    merged_values,
    stats_to_proto,
    task_to_proto,
    task_values,
    version_of,
)
from server.errors import InvalidRequestError
from server.filtering import parse_filter, parse_order
from server.pagination import PageTokens
from server.validation import (
    Violations,
    check,
    check_change,
    check_create,
    check_due_date,
    check_update,
)
from storage.errors import TaskNotFoundError, VersionMismatchError
from storage.query import NEWEST_FIRST, Cursor, Filter, Sort, cursor_at
from storage.repository import RequestRecord, TaskRepository
from storage.tables import TaskRow
from taskservice.v1 import task_service_pb2_grpc
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    CreateTaskRequest,
    DeleteTaskRequest,
    GetTaskRequest,
    GetTaskStatsRequest,
    ListTasksRequest,
    ListTasksResponse,
    TaskStats,
    UndeleteTaskRequest,
    UpdateTaskRequest,
)

# Who calls, as long as calls bear no credentials.
ANONYMOUS = "anonymous"

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000

# A page ends before it outgrows the 4 MiB that a gRPC client takes by default.
MAX_PAGE_BYTES = 3 * 1024 * 1024

# An update without an etag that loses to another write is made anew from what that one left.
_UPDATE_ATTEMPTS = 10


class TaskServicer(task_service_pb2_grpc.TaskServiceServicer):
    """The RPCs. They raise what `server.errors` knows; they never set a status."""

    def __init__(self, repository: TaskRepository, page_tokens: PageTokens) -> None:
        self._repository = repository
        self._page_tokens = page_tokens

    def CreateTask(self, request: CreateTaskRequest, context: grpc.ServicerContext) -> Task:
        check_create(request)
        values = task_values(request.task) | {
            "id": request.task_id or str(uuid_utils.uuid7()),
            "created_by": ANONYMOUS,
        }
        row = self._create(values, _record(request), commit=not request.validate_only)
        return task_to_proto(row)

    def GetTask(self, request: GetTaskRequest, context: grpc.ServicerContext) -> Task:
        check(request)
        return task_to_proto(self._repository.get(request.id))

    def ListTasks(
        self, request: ListTasksRequest, context: grpc.ServicerContext
    ) -> ListTasksResponse:
        query = self._list_query(request)
        size = min(request.page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        rows = self._repository.page(limit=size + 1, **query._asdict())
        tasks = list(_fitting(map(task_to_proto, rows[:size])))
        response = ListTasksResponse(tasks=tasks)
        if len(tasks) < len(rows):
            place = cursor_at(rows[len(tasks) - 1], query.order)
            response.next_page_token = self._page_tokens.seal(place, *_binding(request))
        if request.include_total_size:
            response.total_size = self._repository.count(
                query.filter_, show_deleted=query.show_deleted
            )
        return response

    def UpdateTask(self, request: UpdateTaskRequest, context: grpc.ServicerContext) -> Task:
        fields = check_update(request)
        record = _record(request)
        row = self._repository.find_replay(record) or self._update(request, fields, record)
        return task_to_proto(row)

    def DeleteTask(self, request: DeleteTaskRequest, context: grpc.ServicerContext) -> Task:
        check(request)
        try:
            return task_to_proto(self._repository.delete(request.id, version_of(request.etag)))
        except TaskNotFoundError:
            if not request.allow_missing:
                raise
        return self._missing(request.id)

    def UndeleteTask(self, request: UndeleteTaskRequest, context: grpc.ServicerContext) -> Task:
        check(request)
        return task_to_proto(self._repository.undelete(request.id, version_of(request.etag)))

    def GetTaskStats(
        self, request: GetTaskStatsRequest, context: grpc.ServicerContext
    ) -> TaskStats:
        violations = Violations(request)
        filter_ = violations.parse("filter", parse_filter, request.filter, None)
        violations.raise_any()
        as_of = dt.datetime.now(dt.UTC)
        return stats_to_proto(self._repository.stats(as_of, filter_), as_of)

    def _list_query(self, request: ListTasksRequest) -> _ListQuery:
        def place(token: str) -> Cursor | None:
            return self._page_tokens.open(token, *_binding(request)) if token else None

        violations = Violations(request)
        query = _ListQuery(
            filter_=violations.parse("filter", parse_filter, request.filter, None),
            order=violations.parse("order_by", parse_order, request.order_by, NEWEST_FIRST),
            cursor=violations.parse("page_token", place, request.page_token, None),
            show_deleted=request.show_deleted,
        )
        violations.raise_any()
        return query

    def _create(
        self, values: dict[str, Any], record: RequestRecord | None, *, commit: bool
    ) -> TaskRow:
        try:
            check_due_date(values["due_date"])
        except InvalidRequestError:  # It may have passed since the same call succeeded.
            if (done := self._repository.find_replay(record)) is not None:
                return done
            raise
        return self._repository.create(values, record, commit=commit)

    def _update(
        self, request: UpdateTaskRequest, fields: frozenset[str], record: RequestRecord | None
    ) -> TaskRow:
        for attempt in range(1, _UPDATE_ATTEMPTS + 1):
            row = self._repository.get(request.task.id)
            values = merged_values(row, request.task, fields)
            check_change(row, values, request.task.etag)
            try:
                return self._repository.update(
                    row, values, record, commit=not request.validate_only
                )
            except VersionMismatchError:
                if request.task.etag or attempt == _UPDATE_ATTEMPTS:
                    raise
        raise AssertionError("unreachable")

    def _missing(self, task_id: str) -> Task:
        """What there is of a task that cannot be deleted any more."""
        try:
            return task_to_proto(self._repository.get(task_id))
        except TaskNotFoundError:
            return Task(id=task_id)


class _ListQuery(NamedTuple):
    """A list as the repository takes it."""

    filter_: Filter | None
    order: tuple[Sort, ...]
    cursor: Cursor | None
    show_deleted: bool


def _binding(request: ListTasksRequest) -> tuple[object, ...]:
    """What a page token belongs to."""
    return request.filter, request.order_by, request.show_deleted, ANONYMOUS


def _fitting(tasks: Iterable[Task]) -> Iterator[Task]:
    """The first tasks that fit into one message together."""
    total = 0
    for task in tasks:
        total += task.ByteSize()
        if total > MAX_PAGE_BYTES:
            return
        yield task


def _record(request: CreateTaskRequest | UpdateTaskRequest) -> RequestRecord | None:
    """What makes the write recognisable when it is repeated (AIP-155)."""
    if not request.request_id:
        return None
    content = request.DESCRIPTOR.name.encode() + request.SerializeToString(deterministic=True)
    return RequestRecord(ANONYMOUS, request.request_id, hashlib.sha256(content).digest())
