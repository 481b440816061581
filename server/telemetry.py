"""Traces: set up once in each process that serves, and the helpers that code uses.

A span is made for what is sampled, and nothing but its context for what is not: see
`head_sampled`. docs/observability.md says what is exported where, and what it costs.
"""

from __future__ import annotations

import os
import platform
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import structlog
from opentelemetry import trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.psycopg2 import Psycopg2Instrumentor
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.propagate import set_global_textmap
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    ConsoleSpanExporter,
    SimpleSpanProcessor,
)
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import Attributes, AttributeValue

from server.settings import Settings
from storage.measures import operation

log = structlog.get_logger()

_FLUSH_SECONDS = 3.0
_STATEMENTS = "opentelemetry.instrumentation.psycopg2"

Metadata = Sequence[tuple[str, str | bytes]]

# W3C Trace Context and nothing else: what callers write as baggage would end up in our log, where
# its propagator complains about it.
_PROPAGATOR = TraceContextTextMapPropagator()

_ids = RandomIdGenerator()

# The trace id that the sampler was asked about, for the span that follows.
_chosen_trace_id: ContextVar[int | None] = ContextVar("chosen_trace_id", default=None)


# --- Helpers ------------------------------------------------------------------------------------


def get_tracer() -> trace.Tracer:
    """The tracer of our own spans."""
    return trace.get_tracer("taskservice")


def add_span_attributes(attributes: Mapping[str, AttributeValue]) -> None:
    """Adds to the span under way; nothing when it is not recorded."""
    trace.get_current_span().set_attributes(attributes)


def add_span_event(name: str, attributes: Attributes = None) -> None:
    """Notes that something happened within the span under way."""
    trace.get_current_span().add_event(name, attributes)


def set_span_error(error: Exception) -> None:
    """Makes the span under way an error, and records the exception with its stack."""
    span = trace.get_current_span()
    span.record_exception(error)
    span.set_status(StatusCode.ERROR, type(error).__name__)


@contextmanager
def traced_operation(name: str, attributes: Attributes = None) -> Iterator[trace.Span]:
    """A span of its own around what happens within; an exception makes it an error."""
    with get_tracer().start_as_current_span(
        name, attributes=attributes, record_exception=False, set_status_on_exception=False
    ) as span:
        try:
            yield span
        except Exception as error:
            set_span_error(error)
            raise


# --- The decision at the head of a trace --------------------------------------------------------


@contextmanager
def head_sampled(sampler: Sampler, name: str, metadata: Metadata) -> Iterator[bool]:
    """Whether a call is sampled, asked before anything is recorded.

    Within, a span with the trace id that the sampler was asked about can be started; or, when the
    call is not sampled, the context of its trace is current, and no library records anything.
    """
    context = _PROPAGATOR.extract(dict(metadata))
    caller = trace.get_current_span(context).get_span_context()
    trace_id = caller.trace_id if caller.is_valid else _ids.generate_trace_id()
    decision = sampler.should_sample(context, trace_id, name, SpanKind.SERVER).decision
    if decision is Decision.RECORD_AND_SAMPLE:
        token = _chosen_trace_id.set(trace_id)
        try:
            yield True
        finally:
            _chosen_trace_id.reset(token)
        return
    unsampled = SpanContext(
        trace_id, _ids.generate_span_id(), False, TraceFlags.get_default(), caller.trace_state
    )
    attached = attach(trace.set_span_in_context(NonRecordingSpan(unsampled), context))
    try:
        with suppress_instrumentation():
            yield False
    finally:
        detach(attached)


class _ChosenIds(IdGenerator):
    """The trace id that was decided about, where there is one."""

    def generate_trace_id(self) -> int:
        return _chosen_trace_id.get() or _ids.generate_trace_id()

    def generate_span_id(self) -> int:
        return _ids.generate_span_id()


class _WithinSpans(Sampler):
    """Drops statements outside of any span: what threads of ours ask every second is no trace."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def should_sample(  # noqa: PLR0917
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[trace.Link] | None = None,
        trace_state: trace.TraceState | None = None,
    ) -> SamplingResult:
        parent = trace.get_current_span(parent_context).get_span_context()
        if kind is SpanKind.CLIENT and not parent.is_valid:
            return SamplingResult(Decision.DROP)
        return self._sampler.should_sample(
            parent_context, trace_id, name, kind, attributes, links, trace_state
        )

    def get_description(self) -> str:
        return self._sampler.get_description()


class _NamedStatements(SpanProcessor):
    """Gives the span of a statement the name that it is measured under; "WITH" says nothing."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        scope = span.instrumentation_scope
        if scope is not None and scope.name == _STATEMENTS:
            span.update_name(operation.get())
            span.set_attribute("db.operation.name", operation.get())


# --- Setting up ---------------------------------------------------------------------------------


def resource(settings: Settings) -> Resource:
    """What all telemetry says of its origin; OTEL_RESOURCE_ATTRIBUTES adds to it and goes first."""
    return Resource.create(
        {
            "service.name": settings.otel_service_name or settings.app_name,
            "service.version": settings.version,
            "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
            "deployment.environment.name": settings.environment,
            "process.runtime.name": platform.python_implementation().lower(),
            "process.runtime.version": platform.python_version(),
        }
    ).merge(OTELResourceDetector().detect())


def sampler(settings: Settings) -> Sampler:
    """What decides which calls are traced: OTEL_TRACES_SAMPLER, with its standard meaning."""
    if not settings.otel_enabled:
        return ALWAYS_OFF
    name = settings.otel_traces_sampler
    root: Sampler = {"always_on": ALWAYS_ON, "always_off": ALWAYS_OFF}.get(
        name.removeprefix("parentbased_"), TraceIdRatioBased(settings.sampling_ratio)
    )
    return ParentBased(root) if name.startswith("parentbased_") else root


def set_up_tracing(settings: Settings) -> Callable[[], None]:
    """Spans go where the settings say from here on; returns what flushes them at the end."""
    if not settings.otel_enabled:
        return lambda: None
    provider = TracerProvider(
        sampler=_WithinSpans(sampler(settings)),
        resource=resource(settings),
        id_generator=_ChosenIds(),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(_NamedStatements())
    if settings.debug:
        provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(formatter=_one_line)))
    if endpoint := settings.otlp_endpoint:
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
    trace.set_tracer_provider(provider)
    set_global_textmap(_PROPAGATOR)
    Psycopg2Instrumentor().instrument(
        tracer_provider=provider,
        enable_commenter=settings.db_trace_comments,
        commenter_options=_ONLY_THE_TRACE,
    )
    return lambda: within(_FLUSH_SECONDS, provider.shutdown)


# Of what may stand in a statement's comment: which driver it is, PostgreSQL's log need not repeat.
_ONLY_THE_TRACE = dict.fromkeys(
    ("db_driver", "dbapi_threadsafety", "dbapi_level", "driver_paramstyle", "libpq_version"), False
) | {"opentelemetry_values": True}


def _one_line(span: ReadableSpan) -> str:
    return str(span.to_json(indent=None)) + os.linesep


def within(seconds: float, action: Callable[[], object]) -> None:
    """Does something that may hang, and waits for it no longer than so."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(seconds)
