"""Health as gRPC defines it: Check, Watch, and List (gRFC A90).

"" is liveness: this process serves, whatever the database does. The service's name is readiness:
the database answers and its schema is the one that this build works with. "startup" is that this
was so once.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health, health_pb2

from server.admission import RequestPool
from taskservice.v1 import task_service_pb2

log = structlog.get_logger()

LIVENESS = health.OVERALL_HEALTH
STARTUP = "startup"
READINESS = task_service_pb2.DESCRIPTOR.services_by_name["TaskService"].full_name

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

# A single failure may be a connection that broke; two in a row are an outage.
_FAILURES_BELIEVED = 2


class HealthServicer(health.HealthServicer):
    """grpcio's health service, with a thread of its own: probes never wait behind calls."""

    def __init__(self, request_timeout_seconds: float) -> None:
        pool = RequestPool(1, "health", request_timeout_seconds)
        super().__init__(experimental_non_blocking=True, experimental_thread_pool=pool)
        for method in (self.Check, self.List):
            method.__func__.experimental_thread_pool = pool  # type: ignore[attr-defined]
        self._watches: set[Callable[[Any], None]] = set()
        for service in (STARTUP, READINESS):
            self.set(service, NOT_SERVING)

    def Check(self, request: Any, context: grpc.ServicerContext) -> Any:
        return super().Check(request, context)

    def List(self, request: Any, context: grpc.ServicerContext) -> Any:
        return health_pb2.HealthListResponse(  # type: ignore[attr-defined]
            statuses={
                service: self.Check(health_pb2.HealthCheckRequest(service=service), context)
                for service in (LIVENESS, STARTUP, READINESS)
            }
        )

    def Watch(
        self, request: Any, context: grpc.ServicerContext, send_response_callback: Any = None
    ) -> Any:
        self._watches.add(send_response_callback)
        context.add_callback(lambda: self._watches.discard(send_response_callback))
        return super().Watch(request, context, send_response_callback)

    def end_watches(self) -> None:
        """Ends every Watch, which otherwise would keep a draining server waiting."""
        for send in list(self._watches):
            send(None)


class ReadinessMonitor:
    """Asks the database every so often, and tells the health service when the answer changes.

    Threads ask and judge apart, so that a database that does not answer at all counts as away.
    """

    def __init__(
        self,
        servicer: HealthServicer,
        check: Callable[[], None],
        on_ready: Callable[[], object],
        *,
        interval_seconds: float,
    ) -> None:
        self._servicer = servicer
        self._check = check
        self._on_ready = on_ready
        self._interval_seconds = interval_seconds
        self._answers: queue.Queue[Exception | None] = queue.Queue()
        self._stopped = threading.Event()
        self._ready = False

    def start(self) -> None:
        for target in (self._ask, self._judge):
            threading.Thread(target=target, name="readiness", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    @property
    def is_ready(self) -> bool:
        return self._ready

    def _ask(self) -> None:
        while not self._stopped.is_set():
            try:
                self._check()
                self._answers.put(None)
            except Exception as error:
                self._answers.put(error)
            self._stopped.wait(self._interval_seconds)

    def _judge(self) -> None:
        failures = 0
        patience_seconds = 2 * self._interval_seconds + 1
        while not self._stopped.is_set():
            try:
                problem = self._answers.get(timeout=patience_seconds)
            except queue.Empty:
                problem = TimeoutError(f"no answer from the database in {patience_seconds} s")
            failures = failures + 1 if problem else 0
            if problem is None:
                self._become(ready=True)
            elif failures >= _FAILURES_BELIEVED:
                self._become(ready=False, why=str(problem))

    def _become(self, *, ready: bool, why: str = "") -> None:
        if ready == self._ready or self._stopped.is_set():
            return
        self._ready = ready
        self._servicer.set(READINESS, SERVING if ready else NOT_SERVING)
        if ready:
            self._servicer.set(STARTUP, SERVING)
            log.info("ready")
            self._on_ready()
        else:
            log.error("not ready", why=why)
