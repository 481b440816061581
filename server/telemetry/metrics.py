"""The metrics of a process that serves, by gRFC A66; docs/observability.md lists them."""

import importlib.metadata
import platform
from collections.abc import Callable, Iterator, Mapping
from functools import cache

from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import SpanContext, format_span_id, format_trace_id
from prometheus_client import REGISTRY, Counter, Gauge, Histogram, Metric, disable_created_metrics
from prometheus_client.registry import Collector

# gRFC A66.
_SECONDS = [
    *(0, 0.00001, 0.00005, 0.0001, 0.0003, 0.0006, 0.0008, 0.001, 0.002, 0.003, 0.004, 0.005),
    *(0.006, 0.008, 0.01, 0.013, 0.016, 0.02, 0.025, 0.03, 0.04, 0.05, 0.065, 0.08, 0.1, 0.13),
    *(0.16, 0.2, 0.25, 0.3, 0.4, 0.5, 0.65, 0.8, 1, 2, 5, 10, 20, 50, 100),
]
_BYTES = [0, *(1024 * 2**n for n in (0, 1, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22))]
_BY_METHOD_AND_CODE = ["grpc_method", "grpc_status"]

disable_created_metrics()  # type: ignore[no-untyped-call]

_started = Counter("grpc_server_call_started", "Calls that arrived", ["grpc_method"])
_duration = Histogram(
    "grpc_server_call_duration_seconds",
    "How long calls take, from their arrival on",
    _BY_METHOD_AND_CODE,
    buckets=_SECONDS,
)
_sent = Histogram(
    "grpc_server_call_sent_total_compressed_message_size_bytes",
    "Bytes of all answers of a call; nothing is compressed",
    _BY_METHOD_AND_CODE,
    buckets=_BYTES,
)
_received = Histogram(
    "grpc_server_call_rcvd_total_compressed_message_size_bytes",
    "Bytes of a call's request, without compression",
    _BY_METHOD_AND_CODE,
    buckets=_BYTES,
)
_errors = Counter(
    "taskservice_server_call_errors",
    "Calls answered with an error, by the reason in its ErrorInfo",
    ["grpc_method", "reason"],
)
_OTHER = "other"


@cache
def _ended(method: str, code: str) -> tuple[Histogram, Histogram, Histogram]:
    labels = method, code
    return _duration.labels(*labels), _received.labels(*labels), _sent.labels(*labels)


@cache
def _started_of(method: str) -> Counter:
    return _started.labels(method)


def count_started(method: str) -> None:
    _started_of(method).inc()


def count_ended(
    method: str,
    code: str,
    *,
    seconds: float,
    received_bytes: int,
    sent_bytes: int,
    trace: SpanContext,
) -> None:
    duration, received, sent = _ended(method, code)
    duration.observe(seconds, _exemplar(trace) if trace.trace_flags.sampled else None)
    received.observe(received_bytes)
    sent.observe(sent_bytes)


def count_error(method: str, reason: str) -> None:
    _errors.labels(method, reason).inc()


def count_unknown_method() -> None:
    _started_of(_OTHER).inc()
    for histogram in _ended(_OTHER, "UNIMPLEMENTED"):
        histogram.observe(0)


def _exemplar(trace: SpanContext) -> dict[str, str]:
    return {"trace_id": format_trace_id(trace.trace_id), "span_id": format_span_id(trace.span_id)}


# --- State that is read at each scrape ----------------------------------------------------------

Reading = Callable[[], Mapping[str, float] | float | None]
"""Reads a state: a number, one for each value of a label, or None when unknown."""

_POOL = "db_client_connection_"
_EVENTS_LAG = "The age of the oldest event that no watch can see yet"
# The name, the description and, if there is one, the label.
_GAUGES = {
    "calls": ("taskservice_server_calls", "Calls in flight", "state"),
    "connections": (_POOL + "count", "Connections of the pool", "db_client_connection_state"),
    "connection_limit": (_POOL + "max", "The most connections that the pool opens", ""),
    "connection_waiters": (_POOL + "pending_requests", "Threads that wait for a connection", ""),
    "watches": ("taskservice_watches", "Open watches", "state"),
    "events_lag": ("taskservice_events_lag_seconds", _EVENTS_LAG, ""),
    "tasks": ("taskservice_tasks", "Tasks that are not deleted", "status"),
    "overdue": ("taskservice_tasks_overdue", "Open tasks past their due date", ""),
    "ready": ("taskservice_ready", "1 while ready, else 0", ""),
}


class State(Collector):
    """Collect the state of a worker, by the names above, at each scrape."""

    def __init__(self, **readings: Reading) -> None:
        self._readings = readings

    def describe(self) -> list[Metric]:
        """Return nothing: otherwise the registry collects at registration, too early."""
        return []

    def collect(self) -> Iterator[Metric]:
        for name, read in self._readings.items():
            (metric, description, label), value = _GAUGES[name], read()
            family = Metric(metric, description, "gauge")
            if isinstance(value, Mapping):
                for key, number in value.items():
                    family.add_sample(metric, {label: key}, number)
            elif value is not None:
                family.add_sample(metric, {}, value)
            yield family


_build = Gauge(
    "taskservice_build_info",
    "Always 1; the labels are the versions",
    ["version", "python_version", "grpc_version"],
)


def set_origin(origin: Resource, version: str) -> None:
    """Export the origin as target_info, and what is running as build info."""
    REGISTRY.set_target_info(
        {name.replace(".", "_"): str(value) for name, value in origin.attributes.items()}
    )
    grpc_version = importlib.metadata.version("grpcio")
    _build.labels(version, platform.python_version(), grpc_version).set(1)
