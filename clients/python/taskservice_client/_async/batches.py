"""Read and write many tasks, in batches within the limits of the contract."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence

from taskservice.v1 import task_service_pb2 as pb
from taskservice.v1.task_pb2 import Task
from taskservice_client import requests
from taskservice_client._async import io
from taskservice_client._async.calls import Calls, Method
from taskservice_client.errors import EtagMismatch, TaskNotFound, TaskServiceError, in_batch
from taskservice_client.requests import Item, Targeted


class Batches:
    """Calls of the methods for batches. Raises: TaskServiceError, with `item` and `written`."""

    def __init__(self, calls: Calls, stub: io.Stub) -> None:
        self._calls = calls
        self._get = Method("BatchGetTasks", stub.BatchGetTasks)
        self._create = Method("BatchCreateTasks", stub.BatchCreateTasks)
        self._update = Method("BatchUpdateTasks", stub.BatchUpdateTasks)
        self._delete = Method("BatchDeleteTasks", stub.BatchDeleteTasks)

    async def get(self, ids: Iterable[str], timeout: float | None) -> Sequence[Task]:
        """Read tasks."""
        return await self._each(self._get_part, ids, timeout)

    async def create(
        self, items: Iterable[pb.CreateTaskRequest], timeout: float | None
    ) -> Sequence[Task]:
        """Create tasks."""
        return await self._each(self._create_part, items, timeout)

    async def update(
        self, items: Iterable[pb.UpdateTaskRequest], timeout: float | None
    ) -> Sequence[Task]:
        """Update tasks."""
        return await self._each(self._update_part, items, timeout)

    async def delete(
        self, items: Iterable[pb.DeleteTaskRequest], timeout: float | None
    ) -> Sequence[Task]:
        """Delete tasks."""
        return await self._each(self._delete_part, items, timeout)

    async def deleted_before(
        self, error: TaskNotFound, ids: Sequence[str], timeout: float | None
    ) -> Sequence[Task]:
        """Return the tasks that an earlier attempt of the call deleted. Raises: the error."""
        if not error.may_have_run:
            raise error
        try:
            tasks = await self._get_part(ids, timeout)
        except TaskServiceError:
            raise error from error.__cause__
        if not all(task.HasField("deleted_at") for task in tasks):
            raise error
        return tasks

    async def current(self, request: Targeted, deadline: float) -> Task | None:
        """Return the task of an EtagMismatch; None without tasks:read, for instance."""
        ids = [requests.task_id_of(request)]
        try:
            (task,) = await self._get_part(ids, deadline - time.monotonic())
        except TaskServiceError:
            return None
        return task

    async def _get_part(self, ids: Sequence[str], timeout: float | None) -> Sequence[Task]:
        request = pb.BatchGetTasksRequest(ids=ids)
        return (await self._calls.call(self._get, request, timeout)).tasks

    async def _create_part(
        self, items: Sequence[pb.CreateTaskRequest], timeout: float | None
    ) -> Sequence[Task]:
        request = pb.BatchCreateTasksRequest(requests=items)
        return (await self._calls.call(self._create, request, timeout)).tasks

    async def _update_part(
        self, items: Sequence[pb.UpdateTaskRequest], timeout: float | None
    ) -> Sequence[Task]:
        request = pb.BatchUpdateTasksRequest(requests=items)
        return (await self._calls.call(self._update, request, timeout)).tasks

    async def _delete_part(
        self, items: Sequence[pb.DeleteTaskRequest], timeout: float | None
    ) -> Sequence[Task]:
        request = pb.BatchDeleteTasksRequest(requests=items)
        try:
            return (await self._calls.call(self._delete, request, timeout)).tasks
        except TaskNotFound as error:
            return await self.deleted_before(error, [item.id for item in items], timeout)

    async def _add_current(
        self, error: TaskServiceError, items: Sequence[Item], deadline: float
    ) -> None:
        """Add the task as it is to an EtagMismatch of an item."""
        if not isinstance(error, EtagMismatch) or error.item is None:
            return
        item = items[error.item]
        if isinstance(item, pb.UpdateTaskRequest | pb.DeleteTaskRequest):
            error.current = await self.current(item, deadline)

    async def _each(
        self, call: io.CallPart[Item], items: Iterable[Item], timeout: float | None
    ) -> Sequence[Task]:
        """Call for each part of the items, smaller ones where the response would be too large."""
        done: list[Task] = []
        queue = deque[Sequence[Item]]()
        for part in requests.parts(items):
            queue.append(part)
            while queue:
                some = queue.popleft()
                deadline = self._calls.deadline(timeout)
                try:
                    done += await call(some, timeout)
                except TaskServiceError as error:
                    if error.reason != "ANSWER_TOO_LARGE" or len(some) == 1:
                        await self._add_current(error, some, deadline)
                        raise in_batch(error, done) from error.__cause__
                    queue.extendleft(reversed(requests.halves(some)))
        return done
