"""Set up tracing in a worker, and provide the helpers for spans.

An unsampled call has a trace context but no span: see `head_sampled`.
"""

from __future__ import annotations

import os
import platform
import socket
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import structlog
from opentelemetry import trace
from opentelemetry.context import Context, attach
from opentelemetry.propagate import set_global_textmap
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    ConsoleSpanExporter,
    SimpleSpanProcessor,
    SpanExporter,
)
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    Decision,
    ParentBased,
    Sampler,
    TraceIdRatioBased,
)
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import Attributes, AttributeValue

from server.settings import Settings
from server.telemetry import otel

log = structlog.get_logger()

FLUSH_SECONDS = 3.0

Metadata = Sequence[tuple[str, str | bytes]]

# W3C Trace Context only: the propagator of baggage logs what clients send if it is malformed.
_PROPAGATOR = TraceContextTextMapPropagator()
_FIELDS = _PROPAGATOR.fields

_ids = RandomIdGenerator()

# The trace id of the sampling decision, for the span that follows.
_chosen_trace_id: ContextVar[int | None] = ContextVar("chosen_trace_id", default=None)


# --- Helpers ------------------------------------------------------------------------------------


def get_tracer() -> trace.Tracer:
    """Return the tracer of the service."""
    return trace.get_tracer("taskservice")


def add_span_attributes(attributes: Mapping[str, AttributeValue]) -> None:
    """Add attributes to the current span, if it is recorded."""
    trace.get_current_span().set_attributes(attributes)


def add_span_event(name: str, attributes: Attributes = None) -> None:
    """Add an event to the current span."""
    trace.get_current_span().add_event(name, attributes)


def set_span_error(error: Exception) -> None:
    """Set the status of the current span to ERROR, and record the exception with its stack."""
    attributes = {"exception.type": _name(error), "exception.stacktrace": stack_of(error)}
    if _is_ours(error):
        attributes["exception.message"] = str(error)
    add_span_event("exception", attributes)
    trace.get_current_span().set_status(StatusCode.ERROR, type(error).__name__)


def stack_of(error: BaseException) -> str:
    """Format an exception's stack, after those of its causes.

    Messages of libraries' exceptions are omitted: they may quote a client's data.
    """
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    frames = "".join(traceback.format_tb(error.__traceback__))
    said = f": {error}" if _is_ours(error) else ""
    stack = f"Traceback (most recent call last):\n{frames}{_name(error)}{said}"
    return f"{stack_of(before)}\n\nwhich led to\n\n{stack}" if before else stack


def _name(error: BaseException) -> str:
    return f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")


def _is_ours(error: BaseException) -> bool:
    return type(error).__module__.startswith(("server.", "storage."))


@contextmanager
def traced_operation(name: str, attributes: Attributes = None) -> Iterator[trace.Span]:
    """Run the block in a span of its own; an exception sets its status to ERROR."""
    with get_tracer().start_as_current_span(
        name, attributes=attributes, record_exception=False, set_status_on_exception=False
    ) as span:
        try:
            yield span
        except Exception as error:
            set_span_error(error)
            raise


# --- The decision at the head of a trace --------------------------------------------------------


def head_sampled(sampler: Sampler, name: str, metadata: Metadata) -> bool:
    """Decide whether a call is sampled, before anything is recorded.

    A sampled call's span has the trace id of the decision. For an unsampled call its trace context
    becomes current. Both apply to the current context; grpcio gives each call its own.
    """
    carrier = {key: value for key, value in metadata if key in _FIELDS}
    context = _PROPAGATOR.extract(carrier) if carrier else Context()
    caller = trace.get_current_span(context).get_span_context()
    trace_id = caller.trace_id if caller.is_valid else _ids.generate_trace_id()
    decision = sampler.should_sample(context, trace_id, name, SpanKind.SERVER).decision
    if decision is Decision.RECORD_AND_SAMPLE:
        _chosen_trace_id.set(trace_id)
        return True
    unsampled = SpanContext(
        trace_id, _ids.generate_span_id(), False, TraceFlags.get_default(), caller.trace_state
    )
    attach(trace.set_span_in_context(NonRecordingSpan(unsampled), context))
    return False


class _ChosenIds(IdGenerator):
    """Generate the trace id of the sampling decision, if there is one."""

    def generate_trace_id(self) -> int:
        return _chosen_trace_id.get() or _ids.generate_trace_id()

    def generate_span_id(self) -> int:
        return _ids.generate_span_id()


# --- Setting up ---------------------------------------------------------------------------------


def resource(settings: Settings) -> Resource:
    """Describe the process; OTEL_RESOURCE_ATTRIBUTES adds to it and takes precedence."""
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
    """Build the sampler that OTEL_TRACES_SAMPLER names."""
    if not settings.otel_enabled:
        return ALWAYS_OFF
    name = otel.sampler_name()
    root: Sampler = {"always_on": ALWAYS_ON, "always_off": ALWAYS_OFF}.get(
        name.removeprefix("parentbased_"), TraceIdRatioBased(otel.sampling_ratio(settings))
    )
    return ParentBased(root) if name.startswith("parentbased_") else root


def set_up_tracing(settings: Settings, origin: Resource) -> Callable[[], None]:
    """Export spans as the settings say; return a function that flushes them at the end."""
    if not settings.otel_enabled:
        return lambda: None
    provider = TracerProvider(
        sampler=sampler(settings),
        resource=origin,
        id_generator=_ChosenIds(),
        shutdown_on_exit=False,
    )
    if settings.level == "DEBUG":
        provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(formatter=_one_line)))
    if endpoint := otel.traces_endpoint(settings):
        provider.add_span_processor(BatchSpanProcessor(_span_exporter(endpoint)))
    trace.set_tracer_provider(provider)
    set_global_textmap(_PROPAGATOR)
    return lambda: run_with_timeout(FLUSH_SECONDS, provider.shutdown)


def _span_exporter(endpoint: str) -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.grpc import trace_exporter  # noqa: PLC0415

    return trace_exporter.OTLPSpanExporter(endpoint)


def _one_line(span: ReadableSpan) -> str:
    return str(span.to_json(indent=None)) + os.linesep


def run_with_timeout(seconds: float, action: Callable[[], object]) -> None:
    """Run an action on a thread, and return when it has ended or the time is over."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(seconds)
