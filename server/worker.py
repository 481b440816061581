"""Run one serving process: start, wait for a signal, drain."""

import datetime as dt
import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from signal import SIGINT, SIGTERM, SIGUSR1, SIGUSR2

import grpc
import structlog
from prometheus_client import REGISTRY

from server.access.authentication import (
    Authenticator,
    CertificateAuthenticator,
    OpenAuthenticator,
    TokenAuthenticator,
)
from server.access.tokens import SYMMETRIC
from server.calls.access import Access
from server.calls.admission import Limit
from server.calls.path import CallPath
from server.calls.pools import MAX_QUEUED_BYTES, CallPool, StreamPool
from server.calls.tracing import Tracing
from server.jobs import census
from server.jobs.census import Census
from server.jobs.readiness import ReadinessMonitor
from server.jobs.retention import Maintenance
from server.network import connections
from server.network.health import HealthServicer
from server.network.reflection import add_reflection
from server.process.ports import ALONE, AddressError, Ports, WorkerSlot, listen_address
from server.process.signals import Signals
from server.process.spreading import spread_connections
from server.settings import Settings
from server.tasks import watches
from server.tasks.servicer import TaskServicer
from server.tasks.watches import Watches
from server.telemetry import logs
from server.telemetry.metrics import State, set_origin
from server.telemetry.sampling import sampler
from server.telemetry.scraping import Scraping
from server.telemetry.tracing import resource, run_with_timeout, traced_process
from storage import schema
from storage.database import Database
from storage.events import EventLog
from storage.repository import TaskRepository
from storage.wakeups import Announcer, Listener
from taskservice.v1 import task_service_pb2_grpc

log = structlog.get_logger()

# Threads that reject watches above the limit.
_SPARE_STREAMS = 16
_POOL_TIMEOUT_SECONDS = 2.0
# The limits of a statement, and of one that reads for a call.
_STATEMENT_SECONDS = 30.0
_READ_SECONDS = 5.0
_POLL_SECONDS = 0.05
_CLOSE_SECONDS = 2.0


class Worker:
    """Compose the service in one process; `start` starts its parts, `drain` stops them."""

    def __init__(self, settings: Settings, database_url: str, slot: WorkerSlot = ALONE) -> None:
        self._settings = settings
        self._slot = slot
        self._database = _database(settings, database_url)
        self._announcer = Announcer(self._database)
        self._authenticator = _authenticator(settings)
        is_authenticated = settings.auth_mode != "none"  # Else all clients are one principal.
        watches_of_one = watches.MAX_PER_PRINCIPAL if is_authenticated else watches.MAX_WATCHES
        self._watches = Watches(
            EventLog(self._database),
            Listener(self._database),
            self._authenticator.authenticate,
            limit_per_principal=watches_of_one,
        )
        self._maintenance = Maintenance(self._database, settings)
        self._census = Census(self._database, census.INTERVAL_SECONDS)
        self._health = HealthServicer()
        self._readiness = ReadinessMonitor(self._health, self._check_ready)
        self._calls = CallPool(
            settings.threads_per_worker,
            limit=Limit(settings.call_limit, MAX_QUEUED_BYTES),
            authenticate=None if settings.auth_mode == "none" else self._authenticator.authenticate,
        )
        self._server = _server(settings, self._authenticator, self._database, self._calls)
        self._end_reflection: Callable[[], None] = lambda: None
        self._add_services()
        self._probes = _probe_server(self._health)
        self._state = self._shown()

    def _add_services(self) -> None:
        servicer = TaskServicer(
            TaskRepository(self._database, self._announcer.announce),
            EventLog(self._database),
            self._watches,
            self._settings.accepted_keys(),
            deleted_retention=dt.timedelta(days=self._settings.deleted_retention_days),
        )
        task_service_pb2_grpc.add_TaskServiceServicer_to_server(servicer, self._server)
        self._health.add_to(self._server)
        if self._settings.reflection_for != "off":
            self._end_reflection = add_reflection(self._server)

    def _shown(self) -> State:
        pool = self._database.usage
        return State(
            calls=self._calls.counts,
            connections=lambda: {"used": pool().used, "idle": pool().idle},
            connection_limit=lambda: pool().limit,
            connection_waiters=lambda: pool().waiting,
            watches=self._watches.counts,
            events_lag=lambda: self._census.latest.events_lag_seconds,
            tasks=lambda: self._census.latest.tasks,
            overdue=lambda: self._census.latest.overdue,
            ready=lambda: int(self._readiness.is_ready),
        )

    def start(self) -> Ports:
        """Serve; return the ports, each 0 replaced by a free port. Raises: AddressError."""
        ports = self._slot.ports
        credentials = connections.credentials(self._settings)
        ports = ports._replace(grpc=self._listen(self._server, ports.grpc, credentials))
        spread_connections(ports.grpc, self._settings.worker_count)
        if ports.health is not None:
            ports = ports._replace(health=self._listen(self._probes, ports.health))
            self._probes.start()
        self._authenticator.start()
        self._server.start()
        self._readiness.start()
        self._maintenance.start()
        self._announcer.start()
        self._watches.start()
        if self._slot.number == 0:  # All workers of the service have the same tasks to count.
            self._census.start()
        REGISTRY.register(self._state)
        return ports

    def _listen(
        self, server: grpc.Server, port: int, credentials: grpc.ServerCredentials | None = None
    ) -> int:
        address = listen_address(self._settings.grpc_host, port)
        try:
            if credentials:
                return server.add_secure_port(address, credentials)
            return server.add_insecure_port(address)
        except RuntimeError as error:
            raise AddressError(f"cannot listen on {address}: {error}") from error

    def drain(self, signals: Signals) -> bool:
        """Drain; stop at once after a second signal. Return whether every call could finish.

        Health is NOT_SERVING first and calls are accepted, until balancers send no more of them;
        then new calls are rejected, and those under way may finish.
        """
        log.info("draining")
        self._readiness.stop()
        self._maintenance.stop()
        self._census.stop()
        self._health.enter_graceful_shutdown()
        immediate = bool(signals.wait(self._settings.drain_delay_seconds))
        self._health.end_watches()
        self._end_reflection()
        self._watches.stop()
        stopped = self._server.stop(0 if immediate else self._settings.shutdown_grace_seconds)
        while not stopped.is_set():
            if signals.wait(_POLL_SECONDS) and not immediate:
                immediate = True
                self._server.stop(0)
        self._probes.stop(0)
        REGISTRY.unregister(self._state)
        self._announcer.stop()
        self._authenticator.stop()
        # Cancel requests of cancelled calls may be under way; the database may not answer.
        run_with_timeout(_CLOSE_SECONDS, self._database.close)
        log.info("stopped")
        return not immediate

    def _check_ready(self) -> str:
        """Return a note on what works and differs from what this build expects."""
        self._authenticator.check()
        needs_direct = self._settings.direct_database_url is None
        try:
            with self._database.engine.connect() as connection:
                schema.check_fit(connection, needs_direct=needs_direct)
                note = schema.check_revision(connection)
                schema.check_writable(connection)
                return note
        except schema.ReadOnlyError:
            # Sessions keep the default_transaction_read_only that they began with.
            self._database.replace_connections()
            raise


def _authenticator(settings: Settings) -> Authenticator:
    match settings.auth_mode:
        case "jwt":
            return TokenAuthenticator(
                settings.accepted_keys() if SYMMETRIC in settings.algorithms else (),
                issuer=settings.jwt_issuer,
                audience=settings.jwt_audience,
                algorithms=settings.algorithms - {SYMMETRIC},
                key_source=settings.jwks_source,
            )
        case "mtls":
            return CertificateAuthenticator(settings.mtls_scopes)
        case "none" | None:
            return OpenAuthenticator()


def _database(settings: Settings, url: str) -> Database:
    return Database(
        url,
        pool_size=settings.pool_size,
        max_overflow=settings.pool_overflow,
        pool_timeout_seconds=_POOL_TIMEOUT_SECONDS,
        statement_timeout_seconds=_STATEMENT_SECONDS,
        read_timeout_seconds=_READ_SECONDS,
        application_name=settings.app_name,
        direct_url=settings.direct_database_url,
        prepared_statements=settings.prepared_statements,
    )


def _server(
    settings: Settings, authenticator: Authenticator, database: Database, calls: CallPool
) -> grpc.Server:
    path = CallPath(
        Access(settings, authenticator),
        Tracing(sampler(settings)),
        database,
        StreamPool(watches.MAX_WATCHES + _SPARE_STREAMS),
    )
    return grpc.server(calls, interceptors=[path], options=connections.options())


def _probe_server(health: HealthServicer) -> grpc.Server:
    """Create the server of the probe port: plaintext, as Kubernetes probes need it."""
    threads = ThreadPoolExecutor(1, thread_name_prefix="probe")
    server = grpc.server(threads, options=connections.options())
    health.add_to(server, for_probes=True)
    return server


def serve(
    settings: Settings, database_url: str, slot: WorkerSlot, *, on_serving: Callable[[], object]
) -> bool:
    """Serve until a signal arrives or the supervisor ends. Raises: AddressError."""
    origin = resource(settings)
    set_origin(origin, settings.version)
    with (
        Signals(SIGTERM, SIGINT, SIGUSR1, SIGUSR2) as signals,
        traced_process(settings, origin),
    ):
        worker = Worker(settings, database_url, slot)
        worker.start()
        with _scraping(settings, slot):
            gc.freeze()  # What is loaded by now stays: no collection needs to look at it.
            on_serving()
            _await_end(signals, slot.supervisor_fds)
            return worker.drain(signals)


def _await_end(signals: Signals, supervisor_fds: tuple[int, ...]) -> None:
    while True:
        received = signals.wait(also=supervisor_fds)
        for number in received:
            if number in {SIGUSR1, SIGUSR2}:
                logs.change_level(number)
        if not received or set(received) - {SIGUSR1, SIGUSR2}:
            return


@contextmanager
def _scraping(settings: Settings, slot: WorkerSlot) -> Iterator[None]:
    """Serve metrics, if METRICS_PORT is set. Raises: AddressError."""
    if slot.ports.metrics is None:
        yield
        return
    scraping = Scraping(slot.number, slot.metrics_folder)
    try:
        scraping.start(settings.metrics_on, slot.ports.metrics)
    except OSError as error:
        where = listen_address(settings.metrics_on, slot.ports.metrics)
        raise AddressError(f"cannot listen on {where}: {error.strerror}") from error
    try:
        yield
    finally:
        scraping.stop()
