"""The metrics of a process that serves; those of its statements and connections are in storage.

Calls are measured as gRFC A66 says, by method and code; what is not a method of ours is "other".
docs/observability.md lists all of them. Without a meter provider nothing is recorded.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import structlog
from opentelemetry import metrics
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.instrumentation.system_metrics import SystemMetricsInstrumentor
from opentelemetry.metrics import CallbackOptions, Observation, get_meter
from opentelemetry.sdk.metrics import MeterProvider

from server.call import Call
from server.metric_reader import MetricReader
from server.settings import Settings
from server.telemetry import resource, within

log = structlog.get_logger()

_FLUSH_SECONDS = 3.0

# gRFC A66.
_SECONDS = [
    *(0, 0.00001, 0.00005, 0.0001, 0.0003, 0.0006, 0.0008, 0.001, 0.002, 0.003, 0.004, 0.005),
    *(0.006, 0.008, 0.01, 0.013, 0.016, 0.02, 0.025, 0.03, 0.04, 0.05, 0.065, 0.08, 0.1, 0.13),
    *(0.16, 0.2, 0.25, 0.3, 0.4, 0.5, 0.65, 0.8, 1, 2, 5, 10, 20, 50, 100),
]
_BYTES = [0, *(1024 * 2**n for n in (0, 1, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22))]

_meter = get_meter("taskservice")
_started = _meter.create_counter(
    "grpc.server.call.started", unit="{call}", description="Calls that arrived"
)
_duration = _meter.create_histogram(
    "grpc.server.call.duration",
    unit="s",
    description="How long calls take, from their arrival on",
    explicit_bucket_boundaries_advisory=_SECONDS,
)
_sent = _meter.create_histogram(
    "grpc.server.call.sent_total_compressed_message_size",
    unit="By",
    description="Bytes of all answers of a call; nothing is compressed",
    explicit_bucket_boundaries_advisory=_BYTES,
)
_received = _meter.create_histogram(
    "grpc.server.call.rcvd_total_compressed_message_size",
    unit="By",
    description="Bytes of a call's request, without compression",
    explicit_bucket_boundaries_advisory=_BYTES,
)
_errors = _meter.create_counter(
    "taskservice.server.call.errors",
    unit="{call}",
    description="Calls answered with an error, by the reason in its ErrorInfo",
)
_OTHER = {"grpc.method": "other"}


def count_started(call: Call) -> None:
    _started.add(1, {"grpc.method": call.method})


def count_ended(call: Call) -> None:
    labels = _labels(call)
    _duration.record(call.seconds, labels)
    _received.record(call.received_bytes, labels)
    if call.is_stream or call.code != "OK":
        _sent.record(call.sent_bytes, labels)


def count_sent(call: Call) -> None:
    """The only answer of a call, which is written after its end."""
    _sent.record(call.sent_bytes, _labels(call))


def count_error(call: Call) -> None:
    _errors.add(1, {"grpc.method": call.method, "reason": call.reason})


def count_unknown_method() -> None:
    labels = _OTHER | {"grpc.status": "UNIMPLEMENTED"}
    _started.add(1, _OTHER)
    _duration.record(0, labels)
    _received.record(0, labels)
    _sent.record(0, labels)


def _labels(call: Call) -> dict[str, str]:
    return {"grpc.method": call.method, "grpc.status": call.code}


# --- What is looked at when somebody asks -------------------------------------------------------

Look = Callable[[], Mapping[str, float] | float | None]
"""The state of something now: a number, one for each value of a label, or None when unknown."""


class _Gauge(NamedTuple):
    name: str
    unit: str
    description: str
    label: str = ""


_GAUGES = {
    "calls": _Gauge("taskservice.server.calls", "{call}", "Calls in flight", "state"),
    "connections": _Gauge(
        "db.client.connection.count",
        "{connection}",
        "Connections of the pool",
        "db.client.connection.state",
    ),
    "connection_limit": _Gauge(
        "db.client.connection.max", "{connection}", "The most connections that the pool opens"
    ),
    "connection_waiters": _Gauge(
        "db.client.connection.pending_requests", "{request}", "Those who wait for a connection"
    ),
    "watches": _Gauge("taskservice.watches", "{watch}", "Open watches", "state"),
    "events_lag": _Gauge(
        "taskservice.events.lag", "s", "The age of the oldest event that no watch can see yet"
    ),
    "tasks": _Gauge("taskservice.tasks", "{task}", "Tasks that are not deleted", "status"),
    "overdue": _Gauge("taskservice.tasks.overdue", "{task}", "Open tasks past their due date"),
    "ready": _Gauge("taskservice.ready", "{worker}", "1 while ready, else 0"),
}


def observe(**looks: Look) -> None:
    """Shows the state of a process, by the names above, whenever metrics are collected."""
    for name, look in looks.items():
        gauge = _GAUGES[name]
        _meter.create_observable_up_down_counter(
            gauge.name, [_observing(gauge.label, look)], gauge.unit, gauge.description
        )


def _observing(label: str, look: Look) -> Callable[[CallbackOptions], Iterator[Observation]]:
    def observations(_: CallbackOptions) -> Iterator[Observation]:
        seen = look()
        if isinstance(seen, Mapping):
            yield from (Observation(value, {label: key}) for key, value in seen.items())
        elif seen is not None:
            yield Observation(seen)

    return observations


# --- Setting up ---------------------------------------------------------------------------------


def set_up_metrics(settings: Settings) -> MetricReader | None:
    """Measurements are kept from here on; returns what reads them, if anybody is to.

    The SDK keeps each measurement once for every reader, and a call makes five: so there is one,
    for those who scrape and for the push.
    """
    if settings.metrics_port is None and settings.otlp_endpoint is None:
        return None
    reader = MetricReader()
    provider = MeterProvider(
        [reader.sdk_reader], resource=resource(settings), shutdown_on_exit=False
    )
    metrics.set_meter_provider(provider)
    SystemMetricsInstrumentor(
        config={
            "process.cpu.time": ["user", "system"],
            "process.memory.usage": None,
            "process.open_file_descriptor.count": None,
        }
    ).instrument()
    build = {
        "version": settings.version,
        "python_version": platform.python_version(),
        "grpc_version": importlib.metadata.version("grpcio"),
    }
    _meter.create_observable_gauge(
        "taskservice.build.info",
        [lambda _: [Observation(1, build)]],
        description="Always 1; what is running is in the labels",
    )
    return reader


class MetricPush:
    """Pushes metrics to a collector every so often, and once more at the end."""

    def __init__(self, reader: MetricReader, endpoint: str) -> None:
        self._reader = reader
        self._exporter = OTLPMetricExporter(endpoint)
        self._stopped = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, name="metrics", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()
        within(_FLUSH_SECONDS, self._push)

    def _run(self) -> None:
        interval = float(os.environ.get("OTEL_METRIC_EXPORT_INTERVAL", "60000")) / 1000
        while not self._stopped.wait(interval):
            self._push()

    def _push(self) -> None:
        try:
            self._exporter.export(self._reader.read())
        except Exception:
            log.exception("metrics were not pushed")
