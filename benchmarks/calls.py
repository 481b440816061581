"""The calls that are measured, as requests. A call has the same name for every service."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import jwt
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from benchmarks.requests import Request, grpc_request, http_request
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    BatchCreateTasksRequest,
    BatchCreateTasksResponse,
    BatchGetTasksRequest,
    BatchGetTasksResponse,
    CreateTaskRequest,
    GetTaskRequest,
    GetTaskStatsRequest,
    ListTasksRequest,
    ListTasksResponse,
    TaskStats,
    UpdateTaskRequest,
)

SECRET_KEY = "benchmarks-run-on-this-machine-only"  # noqa: S105 - it protects nothing
CONNECTIONS = 32
EMPTY, GET, CREATE, UPDATE = "Empty", "GetTask", "CreateTask", "UpdateTask"
LIST, STATS = "ListTasks(50)", "GetTaskStats"
BATCH_GET, BATCH_CREATE = "BatchGetTasks(100)", "BatchCreateTasks(100)"
FIRST_TABLE = (GET, CREATE, UPDATE, LIST, STATS)
GROWING = {CREATE, BATCH_CREATE}
"""Calls that add rows: they are measured after the others."""
FIRST, DEEP = "page 1", "page 10,000"

_SERVICE = "/taskservice.v1.TaskService/"
_PAGE, _BATCH, _LONGEST_PAGE = 50, 100, 1000
_PAGES_BEFORE = 9_999
_FEWEST_ROWS = 1_000
_TOKEN_SECONDS = 12 * 3600
_NEW = Task(title="a task", description="what is to be done", tags=["billing", "urgent"])

Calls: TypeAlias = Mapping[str, Sequence[Request]]
"""Requests by the name of their call; each of several requests gets connections of its own."""


def token() -> str:
    """Sign a bearer token for services that authenticate."""
    now = int(time.time())
    claims = {"sub": "benchmark", "scope": "tasks:read tasks:write", "iat": now}
    return jwt.encode({**claims, "exp": now + _TOKEN_SECONDS}, SECRET_KEY, "HS256")


def empty_call() -> Calls:
    return {EMPTY: [grpc_request("/Empty/Call", b"", lambda answer: not answer)]}


def get_call(ids: Sequence[str], bearer: str | None = None) -> Calls:
    def gets_the_task(data: bytes) -> bool:
        return Task.FromString(data).id == ids[0]

    return {GET: [_request("GetTask", GetTaskRequest(id=ids[0]), gets_the_task, bearer)]}


def basic_calls(ids: Sequence[str], bearer: str | None = None) -> Calls:
    """Return the four calls that every service of the comparison has."""
    create = CreateTaskRequest(task=_NEW)
    page = ListTasksRequest(page_size=_PAGE)
    return {
        **get_call(ids, bearer),
        CREATE: [_request("CreateTask", create, _is_new, bearer)],
        LIST: [_request("ListTasks", page, _is_page, bearer)],
        STATS: [_request("GetTaskStats", GetTaskStatsRequest(), _has_counts, bearer)],
    }


def all_calls(ids: Sequence[str], bearer: str | None = None) -> Calls:
    """Return the calls of TaskService that are measured."""
    batch = list(ids[:_BATCH])
    creations = BatchCreateTasksRequest(requests=[CreateTaskRequest(task=_NEW)] * _BATCH)

    def gets_all(data: bytes) -> bool:
        return [task.id for task in BatchGetTasksResponse.FromString(data).tasks] == batch

    return {
        **basic_calls(ids, bearer),
        UPDATE: _updates(ids, bearer),
        BATCH_GET: [_request("BatchGetTasks", BatchGetTasksRequest(ids=batch), gets_all, bearer)],
        BATCH_CREATE: [_request("BatchCreateTasks", creations, _is_new_batch, bearer)],
    }


def page_calls(address: str, bearer: str | None = None) -> Calls:
    """Return the first page and page 10,000 by two orders; walk to the latter in long pages."""
    calls = {}
    for order in ("created_at", "due_date"):
        request = ListTasksRequest(page_size=_LONGEST_PAGE, order_by=order)
        for _ in range(_PAGES_BEFORE * _PAGE // _LONGEST_PAGE):
            answer = _request("ListTasks", request, bool, bearer).send(address)
            request.page_token = ListTasksResponse.FromString(answer).next_page_token
        deep = ListTasksRequest(page_size=_PAGE, order_by=order, page_token=request.page_token)
        first = ListTasksRequest(page_size=_PAGE, order_by=order)
        calls[f"{order}, {FIRST}"] = [_request("ListTasks", first, _is_page, bearer)]
        calls[f"{order}, {DEEP}"] = [_request("ListTasks", deep, _is_page, bearer)]
    return calls


def json_calls(ids: Sequence[str]) -> Calls:
    """Return the basic calls as the FastAPI service has them."""
    task = {"title": _NEW.title, "description": _NEW.description, "tags": list(_NEW.tags)}
    body = json.dumps(task).encode()
    return {
        GET: [http_request(f"/tasks/{ids[0]}", None, lambda data: _json(data, "id") == ids[0])],
        CREATE: [http_request("/tasks", body, lambda data: _json(data, "title") == _NEW.title)],
        LIST: [http_request("/tasks?limit=50", None, lambda data: len(json.loads(data)) == _PAGE)],
        STATS: [
            http_request(
                "/tasks/stats", None, lambda data: int(_json(data, "total")) >= _FEWEST_ROWS
            )
        ],
    }


def rest_calls(ids: Sequence[str], bearer: str | None = None) -> Calls:
    """Return the basic calls as the gateway has them."""
    task = {"title": _NEW.title, "description": _NEW.description, "tags": list(_NEW.tags)}
    body = json.dumps(task).encode()

    def is_page(data: bytes) -> bool:
        return len(json.loads(data)["tasks"]) == _PAGE

    def has_counts(data: bytes) -> bool:
        return int(_json(data, "total")) >= _FEWEST_ROWS

    return {
        GET: [
            http_request(f"/tasks/{ids[0]}", None, lambda data: _json(data, "id") == ids[0], bearer)
        ],
        CREATE: [
            http_request("/tasks", body, lambda data: _json(data, "title") == _NEW.title, bearer)
        ],
        LIST: [http_request(f"/tasks?page_size={_PAGE}", None, is_page, bearer)],
        STATS: [http_request("/tasks/stats/summary", None, has_counts, bearer)],
    }


def _updates(ids: Sequence[str], bearer: str | None) -> list[Request]:
    """Update a task for each connection: writers of one task would wait for each other."""
    mask = FieldMask(paths=["title"])
    updates = [
        UpdateTaskRequest(task=Task(id=id_, title="a new title"), update_mask=mask)
        for id_ in ids[:CONNECTIONS]
    ]

    def is_updated(data: bytes) -> bool:
        return Task.FromString(data).title.startswith("a new title ")

    return [_request("UpdateTask", update, is_updated, bearer) for update in updates]


def _request(
    method: str, message: Message, is_right: Callable[[bytes], bool], bearer: str | None
) -> Request:
    return grpc_request(_SERVICE + method, message.SerializeToString(), is_right, bearer)


def _is_new(data: bytes) -> bool:
    return Task.FromString(data).title == _NEW.title


def _is_new_batch(data: bytes) -> bool:
    return len(BatchCreateTasksResponse.FromString(data).tasks) == _BATCH


def _is_page(data: bytes) -> bool:
    return len(ListTasksResponse.FromString(data).tasks) == _PAGE


def _has_counts(data: bytes) -> bool:
    return TaskStats.FromString(data).total >= _FEWEST_ROWS


def _json(data: bytes, name: str) -> str:
    return str(json.loads(data)[name])
