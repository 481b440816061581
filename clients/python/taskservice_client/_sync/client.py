# Generated from _async/client.py by `make client`.
"""The client of the service."""

from __future__ import annotations

import time
from collections.abc import Iterator, Callable, Iterable, Sequence
from types import TracebackType
from typing import Self, Unpack

from google.protobuf.field_mask_pb2 import FieldMask

from taskservice.v1 import task_service_pb2 as pb
from taskservice.v1.task_event_pb2 import TaskEvent
from taskservice.v1.task_pb2 import Task
from taskservice_client import requests
from taskservice_client._sync import io
from taskservice_client._sync.batches import Batches
from taskservice_client._sync.calls import Calls, Method, Token
from taskservice_client._sync.health import check_health
from taskservice_client._sync.watch import Watch
from taskservice_client.channels import Options, Tls, credentials_for, options_for
from taskservice_client.errors import (
    EtagMismatch,
    TaskNotDeleted,
    TaskNotFound,
)
from taskservice_client.requests import Fields, Targeted
from taskservice_client.watching import Position, TokenStore

PAGE_SIZE = 500


class TaskClient:
    """A client of Task Service.

    Every method makes its calls within `timeout` seconds each, or those of the client, and
    repeats what is safe to repeat: writes carry a request_id. Raises: TaskServiceError.
    """

    def __init__(
        self,
        target: str,
        *,
        token: str | io.TokenCallable | None = None,
        tls: Tls | bool | None = None,
        timeout: float = 20.0,
        interceptors: Sequence[io.Interceptor] = (),
        options: Options = (),
    ) -> None:
        """Open a channel to the target, for example "dns:///tasks.example:50051".

        `token` is a bearer token, or a function that returns one: it is called before the token
        expires and after the service refused it. `tls` is True or `Tls(...)`; False means
        plaintext, and so does the default for a target on this machine. `options` are gRPC's.
        """
        channel = io.open_channel(
            target, credentials_for(target, tls), options_for(tls, options), interceptors
        )
        stub = io.stub_of(channel)
        self._target, self._tls, self._options = target, tls, options
        self._channel = channel
        self._calls = Calls(Token(token), timeout)
        self._create_task = Method("CreateTask", stub.CreateTask)
        self._get_task = Method("GetTask", stub.GetTask)
        self._list_tasks = Method("ListTasks", stub.ListTasks)
        self._update_task = Method("UpdateTask", stub.UpdateTask)
        self._delete_task = Method("DeleteTask", stub.DeleteTask)
        self._undelete_task = Method("UndeleteTask", stub.UndeleteTask)
        self._get_task_stats = Method("GetTaskStats", stub.GetTaskStats)
        self._batches = Batches(self._calls, stub)
        self._list_task_events = Method("ListTaskEvents", stub.ListTaskEvents)
        self._purge_tasks = Method("PurgeTasks", stub.PurgeTasks, is_safe=False)
        self._watch_tasks = stub.WatchTasks

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel; calls and watches end."""
        self._calls.is_closed = True
        if not self._calls.is_forked():  # A channel does not survive a fork, not even to close.
            self._channel.close()

    def create(
        self,
        task: Task | None = None,
        /,
        *,
        task_id: str = "",
        request_id: str = "",
        validate_only: bool = False,
        timeout: float | None = None,
        **fields: Unpack[Fields],
    ) -> Task:
        """Create a task from a message, from fields, or from both. Raises: TaskExists."""
        request_id = request_id or requests.new_request_id()
        request = pb.CreateTaskRequest(
            task=task, task_id=task_id, request_id=request_id, validate_only=validate_only
        )
        requests.assign(request.task, fields)
        return self._calls.call(self._create_task, request, timeout, request_id)

    def get(self, id: str, *, timeout: float | None = None) -> Task:
        """Read a task, also a deleted one. Raises: TaskNotFound."""
        return self._calls.call(self._get_task, pb.GetTaskRequest(id=id), timeout)

    def list(
        self,
        filter: str = "",
        *,
        order_by: str = "",
        show_deleted: bool = False,
        page_size: int = PAGE_SIZE,
        timeout: float | None = None,
    ) -> Iterator[Task]:
        """Iterate over the tasks that match a filter, page by page."""
        request = pb.ListTasksRequest(
            filter=filter, order_by=order_by, show_deleted=show_deleted, page_size=page_size
        )
        while True:
            page = self._calls.call(self._list_tasks, request, timeout)
            for task in page.tasks:
                yield task
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def count(self, filter: str = "", *, timeout: float | None = None) -> int:
        """Count the tasks that match a filter, without deleted ones."""
        return (self.stats(filter, timeout=timeout)).total

    def stats(self, filter: str = "", *, timeout: float | None = None) -> pb.TaskStats:
        """Count the tasks by status and by priority."""
        request = pb.GetTaskStatsRequest(filter=filter)
        return self._calls.call(self._get_task_stats, request, timeout)

    def update(
        self,
        id: str,
        mutate: Callable[[Task], None] | None = None,
        /,
        *,
        etag: str = "",
        request_id: str = "",
        validate_only: bool = False,
        timeout: float | None = None,
        **fields: Unpack[Fields],
    ) -> Task:
        """Update fields of a task; None sets a field to its default. Raises: EtagMismatch.

        Instead of fields, `mutate` changes the task in place; it is called again, with the task as
        it is, if another client wrote the task in between.
        """
        if mutate is not None:
            if fields or etag or request_id or validate_only:
                raise TypeError("`mutate` is given instead of other arguments")
            return self._mutate(id, mutate, timeout)
        request_id = request_id or requests.new_request_id()
        request = pb.UpdateTaskRequest(
            task=Task(id=id, etag=etag),
            update_mask=FieldMask(paths=fields),
            request_id=request_id,
            validate_only=validate_only,
        )
        requests.assign(request.task, fields)
        return self._call(self._update_task, request, timeout, request_id)

    def _mutate(self, id: str, mutate: Callable[[Task], None], timeout: float | None) -> Task:
        """Read, change and write the task until no other write comes in between."""
        deadline = self._calls.deadline(timeout)
        current = self.get(id, timeout=timeout)
        while True:
            task = Task()
            task.CopyFrom(current)
            mutate(task)
            paths = requests.changed_fields(current, task)
            if not paths:
                return current
            task.etag = current.etag
            request_id = requests.new_request_id()
            request = pb.UpdateTaskRequest(
                task=task, update_mask=FieldMask(paths=paths), request_id=request_id
            )
            try:
                left = deadline - time.monotonic()
                return self._call(self._update_task, request, left, request_id)
            except EtagMismatch as error:
                if error.current is None or time.monotonic() >= deadline:
                    raise
                current = error.current

    def delete(
        self, id: str, *, etag: str = "", allow_missing: bool = False, timeout: float | None = None
    ) -> Task:
        """Soft-delete a task. Raises: TaskNotFound, EtagMismatch."""
        request = pb.DeleteTaskRequest(id=id, etag=etag, allow_missing=allow_missing)
        deadline = self._calls.deadline(timeout)
        try:
            return self._call(self._delete_task, request, timeout)
        except TaskNotFound as error:
            left = deadline - time.monotonic()
            (task,) = self._batches.deleted_before(error, [id], left)
            return task

    def undelete(self, id: str, *, etag: str = "", timeout: float | None = None) -> Task:
        """Undelete a task. Raises: TaskNotFound, TaskNotDeleted, EtagMismatch."""
        request = pb.UndeleteTaskRequest(id=id, etag=etag)
        deadline = self._calls.deadline(timeout)
        try:
            return self._call(self._undelete_task, request, timeout)
        except TaskNotDeleted as error:
            if not error.may_have_run:
                raise
        # An earlier attempt undeleted it.
        return self.get(id, timeout=deadline - time.monotonic())

    def history(
        self, id: str, *, page_size: int = PAGE_SIZE, timeout: float | None = None
    ) -> Iterator[TaskEvent]:
        """Iterate over the events of a task, newest first. Raises: TaskNotFound."""
        request = pb.ListTaskEventsRequest(task_id=id, page_size=page_size)
        while True:
            page = self._calls.call(self._list_task_events, request, timeout)
            for event in page.events:
                yield event
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def watch(
        self,
        filter: str = "",
        *,
        resume_token: str = "",
        store: TokenStore | None = None,
        initial: bool = True,
    ) -> Watch:
        """Watch the tasks that match a filter, for ever; see `WatchEventType`.

        The watch begins when its first event is asked for.
        The watch continues after `resume_token`, else after the token in `store`, else begins with
        the tasks that match (`initial`). `store` receives the token of an event when the next
        event is asked for, so that a program that ends in between receives the event again.
        """
        position = Position(filter, resume_token, store, initial=initial)
        return Watch(self._calls, self._watch_tasks, position)

    def get_many(self, ids: Iterable[str], *, timeout: float | None = None) -> Sequence[Task]:
        """Read tasks, in the order of the ids. Raises: TaskNotFound."""
        return self._batches.get(ids, timeout)

    def create_many(
        self, items: Iterable[Task | pb.CreateTaskRequest], *, timeout: float | None = None
    ) -> Sequence[Task]:
        """Create tasks in batches; each batch is atomic. A failure has `item` and `written`."""
        return self._batches.create(map(requests.create_request, items), timeout)

    def update_many(
        self, items: Iterable[Task | pb.UpdateTaskRequest], *, timeout: float | None = None
    ) -> Sequence[Task]:
        """Update tasks in batches; a Task updates the fields that have a value."""
        return self._batches.update(map(requests.update_request, items), timeout)

    def delete_many(
        self, items: Iterable[str | pb.DeleteTaskRequest], *, timeout: float | None = None
    ) -> Sequence[Task]:
        """Soft-delete tasks in batches, by id or by request."""
        return self._batches.delete(map(requests.delete_request, items), timeout)

    def purge(
        self, filter: str, *, force: bool = False, timeout: float | None = None
    ) -> pb.PurgeTasksResponse:
        """Remove deleted tasks permanently; without `force`, count them."""
        request = pb.PurgeTasksRequest(filter=filter, force=force)
        return self._calls.call(self._purge_tasks, request, timeout)

    def health(self, *, timeout: float | None = None) -> bool:
        """Return whether the service is ready, within 5 seconds by default.

        The call has a connection of its own: others wait for a service that is ready.
        """
        self._calls.check()
        return check_health(self._target, self._tls, self._options, timeout or 5.0)

    def _call(
        self,
        method: Method[Targeted, Task],
        request: Targeted,
        timeout: float | None,
        request_id: str = "",
    ) -> Task:
        """Call; add the task as it is to an EtagMismatch."""
        deadline = self._calls.deadline(timeout)
        try:
            return self._calls.call(method, request, timeout, request_id)
        except EtagMismatch as error:
            error.current = self._batches.current(request, deadline)
            raise
