"""Set up tracing in a worker, and provide the helpers for spans."""

import os
import platform
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.propagate import set_global_textmap
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    ConsoleSpanExporter,
    SimpleSpanProcessor,
)
from opentelemetry.trace import StatusCode
from opentelemetry.util.types import Attributes

from server.settings import Settings
from server.telemetry.sampling import PROPAGATOR, ChosenIds, sampler

_FLUSH_SECONDS = 3.0


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
    with trace.get_tracer("taskservice").start_as_current_span(
        name, attributes=attributes, record_exception=False, set_status_on_exception=False
    ) as span:
        try:
            yield span
        except Exception as error:
            set_span_error(error)
            raise


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


def traces_endpoint(settings: Settings) -> str | None:
    """Return the collector that spans are exported to, over gRPC; None for no export."""
    names = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"
    standard = (os.environ.get(name, "").strip() for name in names)
    default = "http://localhost:4317" if settings.environment == "production" else None
    return settings.otel_exporter_endpoint or next(filter(None, standard), default)


@contextmanager
def traced_process(settings: Settings, origin: Resource) -> Iterator[None]:
    """Export spans as the settings say; flush them at the end."""
    if not settings.otel_enabled:
        yield
        return
    provider = TracerProvider(
        sampler(settings), origin, shutdown_on_exit=False, id_generator=ChosenIds()
    )
    if settings.level == "DEBUG":
        provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(formatter=_one_line)))
    if endpoint := traces_endpoint(settings):
        from opentelemetry.exporter.otlp.proto.grpc import trace_exporter  # noqa: PLC0415

        provider.add_span_processor(BatchSpanProcessor(trace_exporter.OTLPSpanExporter(endpoint)))
    trace.set_tracer_provider(provider)
    set_global_textmap(PROPAGATOR)
    try:
        yield
    finally:
        run_with_timeout(_FLUSH_SECONDS, provider.shutdown)


def _one_line(span: ReadableSpan) -> str:
    return str(span.to_json(indent=None)) + os.linesep


def run_with_timeout(seconds: float, action: Callable[[], object]) -> None:
    """Run an action on a thread, and return when it has ended or the time is over."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(seconds)
