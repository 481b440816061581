"""A process that serves: it starts, waits for a signal, and drains."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from signal import SIGHUP, SIGINT, SIGTERM

import grpc
import structlog
from grpc_health.v1 import health_pb2_grpc

from server.health import HealthServicer, ReadinessMonitor
from server.interceptors import MAX_BATCH_BYTES, interceptors
from server.maintenance import Maintenance
from server.process import AddressError, Signals, listen_address
from server.reflection import add_reflection
from server.servicer import TaskServicer
from server.settings import Settings
from server.watch import Watches
from storage.database import Database
from storage.events import EventLog
from storage.repository import TaskRepository
from storage.schema import check_revision
from storage.wakeups import Announcer, Listener
from taskservice.v1 import task_service_pb2_grpc

log = structlog.get_logger()

# Threads on which one watch too many hears that it is one.
_SPARE_STREAMS = 16
_POLL_SECONDS = 0.05
_CLOSE_SECONDS = 2.0


class Worker:
    """The service in one process: everything that `start` brings up, `drain` brings down."""

    def __init__(self, settings: Settings, database_url: str, *, share_port: bool = False) -> None:
        self._settings = settings
        self._database = Database(
            database_url,
            pool_size=settings.db_pool_size,
            max_overflow=settings.db_max_overflow,
            pool_recycle_seconds=settings.db_pool_recycle_seconds,
            statement_timeout_seconds=settings.db_statement_timeout_seconds,
            application_name=settings.app_name,
        )
        self._announcer = Announcer(self._database)
        self._watches = Watches(
            EventLog(self._database),
            Listener(self._database),
            limit=settings.max_watches_per_worker,
            bookmark_seconds=settings.watch_bookmark_interval_seconds,
            stall_seconds=settings.watch_stall_seconds,
        )
        self._maintenance = Maintenance(self._database, settings)
        self._health = HealthServicer()
        self._readiness = ReadinessMonitor(
            self._health,
            self._check_schema,
            interval_seconds=settings.health_check_interval_seconds,
        )
        self._server = _server(settings, self._database, share_port=share_port)
        task_service_pb2_grpc.add_TaskServiceServicer_to_server(
            TaskServicer(
                TaskRepository(self._database, self._announcer.announce),
                EventLog(self._database),
                self._watches,
                settings.key(),
            ),
            self._server,
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._end_reflection = add_reflection(self._server)

    def start(self, port: int) -> int:
        """Serves; returns the port, which is another one only for port 0. Raises: AddressError."""
        address = listen_address(self._settings.grpc_host, port)
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise AddressError(f"cannot listen on {address}: {error}") from error
        self._server.start()
        self._readiness.start()
        self._maintenance.start()
        self._announcer.start()
        self._watches.start()
        return port

    def drain(self, signals: Signals) -> bool:
        """Ends in order; at once after a second signal. Returns whether it ended in order.

        Health says NOT_SERVING first and calls still get in, so that balancers can turn away;
        then no new call gets in, and those that run may finish.
        """
        log.info("draining")
        self._readiness.stop()
        self._maintenance.stop()
        self._health.enter_graceful_shutdown()
        hurried = bool(signals.wait(self._settings.drain_delay_seconds))
        self._health.end_watches()
        self._end_reflection()
        self._watches.stop()
        stopped = self._server.stop(0 if hurried else self._settings.shutdown_grace_seconds)
        while not stopped.is_set():
            if signals.wait(_POLL_SECONDS) and not hurried:
                hurried = True
                self._server.stop(0)
        self._announcer.stop()
        self._close_database()
        log.info("stopped")
        return not hurried

    def _close_database(self) -> None:
        """Waits for the cancel requests of calls cut short; not for a database that is silent."""
        closing = threading.Thread(target=self._database.close, daemon=True)
        closing.start()
        closing.join(_CLOSE_SECONDS)

    def _check_schema(self) -> None:
        with self._database.engine.connect() as connection:
            check_revision(connection)


def _server(settings: Settings, database: Database, *, share_port: bool) -> grpc.Server:
    calls = ThreadPoolExecutor(settings.threads_per_worker, thread_name_prefix="call")
    streams = ThreadPoolExecutor(
        settings.max_watches_per_worker + _SPARE_STREAMS, thread_name_prefix="stream"
    )
    return grpc.server(
        calls,
        interceptors=interceptors(database, streams),
        options=[
            ("grpc.so_reuseport", int(share_port)),
            ("grpc.max_receive_message_length", MAX_BATCH_BYTES),
            # A client that vanished gives its watch back; one may ask whether we are here.
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ],
    )


def serve(
    settings: Settings,
    database_url: str,
    port: int,
    *,
    share_port: bool = False,
    parent: tuple[int, ...] = (),
    on_ready: Callable[[int], object],
) -> bool:
    """Serves until a signal comes or the parent's descriptor closes. Raises: AddressError."""
    with Signals(SIGTERM, SIGINT, SIGHUP) as signals:
        worker = Worker(settings, database_url, share_port=share_port)
        port = worker.start(port)
        gc.freeze()  # All that is there by now stays: no collection need look at it again.
        on_ready(port)
        signals.wait(also=parent)
        return worker.drain(signals)
