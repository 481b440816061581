"""Reads the metrics of this process, in OpenTelemetry's form and in Prometheus'."""

from __future__ import annotations

import re
import threading
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import (
    Histogram,
    HistogramDataPoint,
    InMemoryMetricReader,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import format_span_id, format_trace_id
from prometheus_client import Metric as Family
from prometheus_client.samples import Exemplar as FamilyExemplar

_UNITS = {"s": "seconds", "By": "bytes"}
_NO_NAME = re.compile(r"[^a-zA-Z0-9_]")


class MetricReader:
    """For any number of readers; each gets the latest exemplars, whoever has read before."""

    def __init__(self) -> None:
        self.sdk_reader = InMemoryMetricReader()
        self._lock = threading.Lock()
        self._exemplars: dict[tuple[str, Any], dict[int, Exemplar]] = {}

    def read(self) -> MetricsData:
        """All metrics as they are now."""
        with self._lock:
            data = self.sdk_reader.get_metrics_data() or MetricsData(resource_metrics=[])
            return MetricsData([self._with_exemplars(it) for it in data.resource_metrics])

    def _with_exemplars(self, resource: ResourceMetrics) -> ResourceMetrics:
        scopes = [
            replace(scope, metrics=[self._with_latest(metric) for metric in scope.metrics])
            for scope in resource.scope_metrics
        ]
        return replace(resource, scope_metrics=scopes)

    def _with_latest(self, metric: Metric) -> Metric:
        """The SDK tells an exemplar once; here it stands until its bucket has a newer one."""
        if not isinstance(metric.data, Histogram):
            return metric
        points = []
        for point in metric.data.data_points:
            key = metric.name, frozenset((point.attributes or {}).items())
            latest = self._exemplars.setdefault(key, {})
            for exemplar in point.exemplars:
                latest[bisect_left(point.explicit_bounds, exemplar.value)] = exemplar
            points.append(replace(point, exemplars=list(latest.values())))
        return replace(metric, data=replace(metric.data, data_points=points))


def families(data: MetricsData, labels: dict[str, str]) -> Iterator[Family]:
    """The metrics as Prometheus names them, with these labels beside their own.

    Names follow OpenTelemetry's rules for Prometheus. Its own exporter knows no exemplars.
    """
    for resource in data.resource_metrics:
        yield _target_info(resource.resource, labels)
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                yield _family(metric, labels)


def _target_info(resource: Resource, labels: dict[str, str]) -> Family:
    family = Family("target", "What is measured here", "info")
    family.add_sample("target_info", _labels(resource.attributes) | labels, 1)
    return family


def _family(metric: Metric, labels: dict[str, str]) -> Family:
    unit = _UNITS.get(metric.unit or "", "")
    name = _NO_NAME.sub("_", metric.name)
    if unit and not name.endswith(unit):
        name = f"{name}_{unit}"
    counts = isinstance(metric.data, Sum) and metric.data.is_monotonic
    kind = "counter" if counts else "gauge"
    if isinstance(metric.data, Histogram):
        kind = "histogram"
    family = Family(name, metric.description or "", kind, unit)
    for point in metric.data.data_points:
        own = _labels(point.attributes) | labels
        if isinstance(point, HistogramDataPoint):
            _add_histogram(family, point, own)
        elif isinstance(point, NumberDataPoint):
            family.add_sample(f"{name}_total" if counts else name, own, point.value)
    return family


def _add_histogram(family: Family, point: HistogramDataPoint, labels: dict[str, str]) -> None:
    exemplars = {bisect_left(point.explicit_bounds, it.value): it for it in point.exemplars}
    total = 0
    for n, bound in enumerate([*point.explicit_bounds, float("inf")]):
        total += point.bucket_counts[n]
        le = {"le": "+Inf" if bound == float("inf") else str(float(bound))}
        family.add_sample(
            f"{family.name}_bucket", labels | le, total, None, _exemplar(exemplars.get(n))
        )
    family.add_sample(f"{family.name}_count", labels, total)
    family.add_sample(f"{family.name}_sum", labels, point.sum)


def _exemplar(exemplar: Exemplar | None) -> FamilyExemplar | None:
    if exemplar is None or not exemplar.trace_id or not exemplar.span_id:
        return None
    ids = {
        "trace_id": format_trace_id(exemplar.trace_id),
        "span_id": format_span_id(exemplar.span_id),
    }
    return FamilyExemplar(ids, exemplar.value, exemplar.time_unix_nano / 1e9)


def _labels(attributes: Mapping[str, Any] | None) -> dict[str, str]:
    return {_NO_NAME.sub("_", key): str(value) for key, value in (attributes or {}).items()}
