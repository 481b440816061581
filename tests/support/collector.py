"""Collect OTLP exports with real gRPC services."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.support.service import PATIENCE_SECONDS, wait_until

OK, ERROR = Status.STATUS_CODE_OK, Status.STATUS_CODE_ERROR
SERVER, CLIENT = Span.SPAN_KIND_SERVER, Span.SPAN_KIND_CLIENT


@dataclass(frozen=True)
class ReceivedSpan:
    """A span as it arrived, its ids as W3C Trace Context writes them."""

    span: Span
    resource: dict[str, Any]

    @property
    def name(self) -> str:
        return self.span.name

    @property
    def trace_id(self) -> str:
        return self.span.trace_id.hex()

    @property
    def span_id(self) -> str:
        return self.span.span_id.hex()

    @property
    def parent_id(self) -> str:
        return self.span.parent_span_id.hex()

    @property
    def is_error(self) -> bool:
        return self.span.status.code == ERROR

    @property
    def attributes(self) -> dict[str, Any]:
        return values(self.span.attributes)

    @property
    def events(self) -> list[tuple[str, dict[str, Any]]]:
        return [(event.name, values(event.attributes)) for event in self.span.events]


def values(attributes: Iterable[KeyValue]) -> dict[str, Any]:
    """Attributes by their names; each has one of several fields set."""
    return {
        each.key: getattr(each.value, str(each.value.WhichOneof("value"))) for each in attributes
    }


class Collector:
    """Takes traces on a port of its own, until it is stopped; it may start again."""

    def __init__(self, credentials: grpc.ServerCredentials | None = None) -> None:
        self._credentials = credentials
        self.port = 0
        self.requests = 0
        self.metadata: dict[str, str | bytes] = {}
        """Of the latest request."""
        self._refusal: grpc.StatusCode | None = None
        self._may_answer = threading.Event()
        self._may_answer.set()
        self._spans: list[ReceivedSpan] = []
        self.metrics: dict[str, float] = {}
        """The latest value of each gauge, by its name."""

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listens: on a free port first, and on the same one ever after."""
        self._server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        services: tuple[tuple[Callable[..., None], object], ...] = (
            (trace_service_pb2_grpc.add_TraceServiceServicer_to_server, _Traces(self)),
            (metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server, _Metrics(self)),
        )
        for add, service in services:
            add(service, self._server)
        address = f"127.0.0.1:{self.port}"
        if self._credentials:
            self.port = self._server.add_secure_port(address, self._credentials)
        else:
            self.port = self._server.add_insecure_port(address)
        self._server.start()

    def stop(self) -> None:
        self._may_answer.set()
        self._server.stop(None).wait(PATIENCE_SECONDS)

    @contextmanager
    def refusing(self, code: grpc.StatusCode) -> Iterator[None]:
        """Answers everything with this code while this holds."""
        self._refusal = code
        try:
            yield
        finally:
            self._refusal = None

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Takes everything and answers nothing while this holds."""
        self._may_answer.clear()
        try:
            yield
        finally:
            self._may_answer.set()

    def spans(self) -> list[ReceivedSpan]:
        return list(self._spans)

    def trace(self, trace_id: str) -> list[ReceivedSpan]:
        """What it has got of a trace so far."""
        return [span for span in self.spans() if span.trace_id == trace_id]

    def await_server_span(self, trace_id: str) -> ReceivedSpan:
        """The span of the one call in a trace; those below it have arrived by then, or before."""

        def server_spans() -> list[ReceivedSpan]:
            return [span for span in self.trace(trace_id) if span.span.kind == SERVER]

        return wait_until(server_spans, "the span of the call arrives")[0]

    def answer(self, context: grpc.ServicerContext) -> None:
        self.requests += 1
        self.metadata = dict(context.invocation_metadata())
        self._may_answer.wait(PATIENCE_SECONDS)
        if self._refusal is not None:
            context.abort(self._refusal, "this collector takes nothing")

    def keep_spans(self, request: trace_service_pb2.ExportTraceServiceRequest) -> None:
        """Store them at once: a reader of a call's span finds the spans of its statements."""
        self._spans += [
            ReceivedSpan(span, values(each.resource.attributes))
            for each in request.resource_spans
            for scope in each.scope_spans
            for span in scope.spans
        ]


class _Traces(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._collector.answer(context)
        self._collector.keep_spans(request)
        return trace_service_pb2.ExportTraceServiceResponse()


class _Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._collector.answer(context)
        self._collector.metrics |= {
            metric.name: metric.gauge.data_points[0].as_double
            for each in request.resource_metrics
            for scope in each.scope_metrics
            for metric in scope.metrics
        }
        return metrics_service_pb2.ExportMetricsServiceResponse()


@contextmanager
def running_collector(
    credentials: grpc.ServerCredentials | None = None,
) -> Iterator[Collector]:
    collector = Collector(credentials)
    collector.start()
    try:
        yield collector
    finally:
        collector.stop()
