"""Serve GetTask with plain grpcio, protobuf and one prepared statement of psycopg2: the floor."""

from __future__ import annotations

import threading

import psycopg2
from psycopg2.extensions import connection as Connection  # noqa: N812 - it is a class

from benchmarks.services.messages import COLUMNS, task_of
from benchmarks.services.plain import serve
from taskservice.v1.task_service_pb2 import GetTaskRequest

_PREPARE = f"PREPARE get (uuid) AS SELECT {COLUMNS} FROM tasks WHERE id = $1"  # noqa: S608
_of_thread = threading.local()


def _connection() -> Connection:
    """Return the connection of the thread."""
    if not hasattr(_of_thread, "connection"):
        connection = psycopg2.connect("")
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(_PREPARE)
        _of_thread.connection = connection
    return _of_thread.connection  # type: ignore[no-any-return]


def get_task(request: bytes) -> bytes:
    with _connection().cursor() as cursor:
        cursor.execute("EXECUTE get (%s)", [GetTaskRequest.FromString(request).id])
        return task_of(cursor.fetchone()).SerializeToString()


def main() -> None:
    serve("taskservice.v1.TaskService", {"GetTask": get_task})


if __name__ == "__main__":
    main()
