"""Serve four calls of TaskService with grpc.aio and asyncpg."""

from __future__ import annotations

import asyncio
import os

import asyncpg
import grpc

from benchmarks.services.messages import COLUMNS, stats_of, task_of
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    CreateTaskRequest,
    GetTaskRequest,
    GetTaskStatsRequest,
    ListTasksRequest,
    ListTasksResponse,
    TaskStats,
)
from taskservice.v1.task_service_pb2_grpc import (
    TaskServiceServicer,
    add_TaskServiceServicer_to_server,
)

_CONNECTIONS = 4
_GET = f"SELECT {COLUMNS} FROM tasks WHERE id = $1"  # noqa: S608
_CREATE = (
    "INSERT INTO tasks (id, title, description, status, priority, tags, created_by)"  # noqa: S608
    f" VALUES (gen_random_uuid(), $1, $2, 1, 2, $3, 'benchmark') RETURNING {COLUMNS}"
)
_LIST = (
    f"SELECT {COLUMNS} FROM tasks WHERE deleted_at IS NULL"  # noqa: S608
    " ORDER BY created_at, id LIMIT $1"
)
_STATS = (
    "SELECT status, priority, count(*),"
    " count(*) FILTER (WHERE status <= 2 AND due_date < now())"
    " FROM tasks WHERE deleted_at IS NULL GROUP BY status, priority"
)


class Servicer(TaskServiceServicer):
    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def GetTask(self, request: GetTaskRequest, context: object) -> Task:
        return task_of(await self._pool.fetchrow(_GET, request.id))

    async def CreateTask(self, request: CreateTaskRequest, context: object) -> Task:
        task = request.task
        values = task.title, task.description, list(task.tags)
        return task_of(await self._pool.fetchrow(_CREATE, *values))

    async def ListTasks(self, request: ListTasksRequest, context: object) -> ListTasksResponse:
        rows = await self._pool.fetch(_LIST, request.page_size)
        return ListTasksResponse(tasks=[task_of(row) for row in rows])

    async def GetTaskStats(self, request: GetTaskStatsRequest, context: object) -> TaskStats:
        return stats_of(await self._pool.fetch(_STATS))


async def main() -> None:
    pool = await asyncpg.create_pool(min_size=_CONNECTIONS, max_size=_CONNECTIONS)
    server = grpc.aio.server(options=[("grpc.so_reuseport", 1)])
    servicer = Servicer(pool)  # type: ignore[abstract] # The other methods are not called.
    add_TaskServiceServicer_to_server(servicer, server)
    server.add_insecure_port(f"127.0.0.1:{os.environ['PORT']}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
