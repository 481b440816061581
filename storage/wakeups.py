"""Wake up the readers of events in all processes, by LISTEN and NOTIFY.

A wake-up is a hint that may be lost or late: readers also read at intervals.
"""

import threading
import time
from contextlib import suppress

import psycopg2
from psycopg2.extensions import connection as DriverConnection  # noqa: N812 - used as a type
from sqlalchemy import text

from storage.database import Database
from storage.errors import StorageError
from storage.pool import readable
from storage.statement import Statement

_CHANNEL = "task_events"
_NOTIFY = Statement("notify", text(f"SELECT pg_notify('{_CHANNEL}', '')"))

# NOTIFY inside a write would make all commits wait for each other, as PostgreSQL holds one lock for
# them until the commit is on disk. So it is sent behind the writes, at this interval at most.
_INTERVAL_SECONDS = 0.02


class Announcer:
    """Notify every process of new events, shortly after `announce`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._asked = threading.Event()
        self._stopped = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, name="announcer", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()
        self._asked.set()

    def announce(self) -> None:
        """Request a notification without blocking."""
        self._asked.set()

    def _run(self) -> None:
        while self._asked.wait() and not self._stopped.is_set():
            self._asked.clear()
            with suppress(StorageError):  # The readers also read at intervals.
                self._database.write(_NOTIFY)
            self._stopped.wait(_INTERVAL_SECONDS)


class Listener:
    """Wait for announcements on a connection outside the pool; for one thread."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: DriverConnection | None = None

    def listen(self) -> None:
        """Listen, unless it listens already. Raises: DatabaseUnavailableError."""
        if self._connection is None:
            self._connection = self._database.dedicated_connection(f"LISTEN {_CHANNEL}")

    def wait(self, timeout_seconds: float) -> None:
        """Return at an announcement or after the timeout."""
        if self._connection is None:
            time.sleep(timeout_seconds)
        elif readable(self._connection, timeout_seconds):
            try:
                self._connection.poll()
                self._connection.notifies.clear()
            except psycopg2.Error:
                self.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
