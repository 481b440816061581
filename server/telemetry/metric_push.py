"""Pushes the metrics of this process to a collector, under the names that OpenTelemetry knows.

They are counted in Prometheus' form: its client costs a call a tenth of what OpenTelemetry's SDK
does (docs/decisions/0011). There is no library for the way from there to OTLP.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExporter,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client import REGISTRY
from prometheus_client import Metric as Family
from prometheus_client.samples import Exemplar as FamilyExemplar
from prometheus_client.samples import Sample

from server.telemetry.otel import Target
from server.telemetry.tracing import FLUSH_SECONDS, within

# Of the family whose lines are written seldom.
log = logging.getLogger("opentelemetry.metric_push")

_DEFAULT_MILLISECONDS = 60_000.0
_CUMULATIVE = AggregationTemporality.CUMULATIVE


class _Name(NamedTuple):
    name: str
    unit: str


# The semantic conventions' name of each family, and its unit; what is not here is not pushed.
NAMES = {
    "grpc_server_call_started": _Name("grpc.server.call.started", "{call}"),
    "grpc_server_call_duration_seconds": _Name("grpc.server.call.duration", "s"),
    "grpc_server_call_sent_total_compressed_message_size_bytes": _Name(
        "grpc.server.call.sent_total_compressed_message_size", "By"
    ),
    "grpc_server_call_rcvd_total_compressed_message_size_bytes": _Name(
        "grpc.server.call.rcvd_total_compressed_message_size", "By"
    ),
    "db_client_operation_duration_seconds": _Name("db.client.operation.duration", "s"),
    "db_client_connection_wait_time_seconds": _Name("db.client.connection.wait_time", "s"),
    "db_client_connection_timeouts": _Name("db.client.connection.timeouts", "{timeout}"),
    "db_client_connection_count": _Name("db.client.connection.count", "{connection}"),
    "db_client_connection_max": _Name("db.client.connection.max", "{connection}"),
    "db_client_connection_pending_requests": _Name(
        "db.client.connection.pending_requests", "{request}"
    ),
    "taskservice_server_call_errors": _Name("taskservice.server.call.errors", "{call}"),
    "taskservice_server_calls": _Name("taskservice.server.calls", "{call}"),
    "taskservice_watches": _Name("taskservice.watches", "{watch}"),
    "taskservice_events_lag_seconds": _Name("taskservice.events.lag", "s"),
    "taskservice_events_unreadable": _Name("taskservice.events.unreadable", "{event}"),
    "taskservice_tasks": _Name("taskservice.tasks", "{task}"),
    "taskservice_tasks_overdue": _Name("taskservice.tasks.overdue", "{task}"),
    "taskservice_ready": _Name("taskservice.ready", "{worker}"),
    "taskservice_build_info": _Name("taskservice.build.info", ""),
    "process_cpu_seconds": _Name("process.cpu.time", "s"),
    "process_resident_memory_bytes": _Name("process.memory.usage", "By"),
    "process_open_fds": _Name("process.open_file_descriptor.count", "{file_descriptor}"),
}
_ATTRIBUTES = {
    "grpc_method": "grpc.method",
    "grpc_status": "grpc.status",
    "db_operation_name": "db.operation.name",
    "db_client_connection_state": "db.client.connection.state",
    "error_type": "error.type",
}

# The units of a state whose sum over instances means nothing: an age, what is always 1, and what is
# in the database, which each instance counts.
_NOT_ADDED_UP = {"s", "", "{task}"}

Labels = tuple[tuple[str, str], ...]


class MetricPush:
    """Pushes every OTEL_METRIC_EXPORT_INTERVAL milliseconds, and once more at the end."""

    def __init__(self, resource: Resource, target: Target) -> None:
        self._resource = resource
        self._exporter = _exporter(target)
        self._stopped = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, name="metrics", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()
        within(FLUSH_SECONDS, self._push)

    def _run(self) -> None:
        while not self._stopped.wait(_interval_seconds()):
            self._push()

    def _push(self) -> None:
        try:
            self._exporter.export(metrics_data(REGISTRY.collect(), self._resource))
        except Exception:
            log.exception("metrics were not pushed")


def _exporter(target: Target) -> MetricExporter:
    if target.protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc import metric_exporter  # noqa: PLC0415

        return metric_exporter.OTLPMetricExporter(target.endpoint)
    from opentelemetry.exporter.otlp.proto.http import metric_exporter as http  # noqa: PLC0415

    return http.OTLPMetricExporter(target.endpoint)


def _interval_seconds() -> float:
    """OTEL_METRIC_EXPORT_INTERVAL, in milliseconds; its default for what is no such number."""
    try:
        milliseconds = float(os.environ.get("OTEL_METRIC_EXPORT_INTERVAL") or _DEFAULT_MILLISECONDS)
    except ValueError:
        milliseconds = _DEFAULT_MILLISECONDS
    return max(milliseconds, 1) / 1000


_started_ns = time.time_ns()


def metrics_data(families: Iterable[Family], resource: Resource) -> MetricsData:
    """The families in OpenTelemetry's form, counted since this process began."""
    metrics = [_metric(family) for family in families if family.name in NAMES and family.samples]
    scope = ScopeMetrics(InstrumentationScope("taskservice"), metrics, "")
    return MetricsData([ResourceMetrics(resource, [scope], "")])


def _metric(family: Family) -> Metric:
    name, unit = NAMES[family.name]
    data: Histogram | Sum | Gauge
    if family.type == "histogram":
        data = Histogram(list(_histograms(family)), _CUMULATIVE)
    elif family.type == "counter":
        data = Sum(_numbers(family), _CUMULATIVE, is_monotonic=True)
    elif unit in _NOT_ADDED_UP:
        data = Gauge(_numbers(family))
    else:
        data = Sum(_numbers(family), _CUMULATIVE, is_monotonic=False)
    return Metric(name, family.documentation, unit, data)


def _numbers(family: Family) -> list[NumberDataPoint]:
    now = time.time_ns()
    return [
        NumberDataPoint(_attributes(it.labels.items()), _started_ns, now, it.value)
        for it in family.samples
    ]


def _histograms(family: Family) -> Iterator[HistogramDataPoint]:
    by_labels: dict[Labels, list[Sample]] = {}
    for sample in family.samples:
        labels = tuple(item for item in sample.labels.items() if item[0] != "le")
        by_labels.setdefault(labels, []).append(sample)
    for labels, samples in by_labels.items():
        yield _histogram(labels, samples)


def _histogram(labels: Labels, samples: list[Sample]) -> HistogramDataPoint:
    buckets = [it for it in samples if it.name.endswith("_bucket")]
    totals = [int(it.value) for it in buckets]
    return HistogramDataPoint(
        _attributes(labels),
        _started_ns,
        time.time_ns(),
        count=totals[-1],
        sum=next(it.value for it in samples if it.name.endswith("_sum")),
        bucket_counts=[b - a for a, b in zip([0, *totals], totals, strict=False)],
        explicit_bounds=[float(it.labels["le"]) for it in buckets[:-1]],
        min=None,  # type: ignore[arg-type]  # Optional in OTLP, and not known.
        max=None,  # type: ignore[arg-type]
        exemplars=[_exemplar(it.exemplar) for it in buckets if it.exemplar],
    )


def _exemplar(exemplar: FamilyExemplar) -> Exemplar:
    return Exemplar(
        {},
        exemplar.value,
        int(float(exemplar.timestamp or 0) * 1e9),
        int(exemplar.labels["span_id"], 16),
        int(exemplar.labels["trace_id"], 16),
    )


def _attributes(labels: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {_ATTRIBUTES.get(name, name): value for name, value in labels if value}
