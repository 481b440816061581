"""OpenTelemetry: a span around each call, and its context in the metadata.

Only the API is used. An application without an SDK pays for one comparison.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import propagate, trace
from opentelemetry.trace import ProxyTracerProvider, SpanKind, Status, StatusCode

from taskservice_client.errors import TaskServiceError
from taskservice_client.tokens import Metadata

_tracer = trace.get_tracer("taskservice_client")


def is_traced() -> bool:
    """Return whether the application has an SDK."""
    return not isinstance(trace.get_tracer_provider(), ProxyTracerProvider)


@contextmanager
def span_of(method: str) -> Iterator[Metadata]:
    """Open the span of a call; yield the metadata that continues the trace."""
    service, _, name = method.rpartition("/")
    attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
    with _tracer.start_as_current_span(
        method, kind=SpanKind.CLIENT, attributes=attributes, set_status_on_exception=False
    ) as span:
        try:
            yield context_metadata()
        except TaskServiceError as error:
            span.set_status(Status(StatusCode.ERROR, error.reason or error.code.name))
            span.set_attribute("rpc.grpc.status_code", error.code.value[0])
            raise
        except BaseException as error:  # Of the token's callable, or a cancellation.
            span.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise
        span.set_attribute("rpc.grpc.status_code", 0)


def context_metadata() -> Metadata:
    """Return the current context in the form of the configured propagators."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return tuple((key.lower(), value) for key, value in carrier.items())
