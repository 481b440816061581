"""The span of a call: decided first, and made only when somebody will see it."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import grpc
from opentelemetry import trace
from opentelemetry.instrumentation.grpc import server_interceptor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Sampler

from server.calls.interceptor import Behavior, CallInterceptor, Handler
from server.telemetry.tracing import head_sampled

# Who looks for a slow call is not looking for these.
_NEVER_SAMPLED = "grpc.reflection."


class TracingInterceptor(CallInterceptor):
    """OpenTelemetry's interceptor, around those calls that are sampled.

    It costs as much as the rest of a call's telemetry together, also for a call that is not
    sampled. Such a call takes a short way that only carries the trace's context on.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._interceptor: Any = server_interceptor(_Tracers())  # type: ignore[no-untyped-call]

    def unary(self, method: str, handler: Handler) -> Behavior:
        return self._either(method, handler.unary_unary, self._traced(method, handler).unary_unary)

    def stream(self, method: str, handler: Handler) -> Behavior:
        traced = self._traced(method, handler)
        return self._either(
            method,
            handler.unary_stream or handler.stream_stream,
            traced.unary_stream or traced.stream_stream,
        )

    def _either(self, method: str, behavior: Any, traced: Any) -> Behavior:
        """The one for what is not sampled, or the one for what is."""
        name = method.removeprefix("/")
        sampler = ALWAYS_OFF if name.startswith(_NEVER_SAMPLED) else self._sampler

        def either(request: Any, context: grpc.ServicerContext) -> Any:
            is_sampled = head_sampled(sampler, name, context.invocation_metadata())
            return (traced if is_sampled else behavior)(request, context)

        return either

    def _traced(self, method: str, handler: Handler) -> Any:
        """The handler within OpenTelemetry's interceptor, which takes only the name from here."""
        details = SimpleNamespace(method=method.removeprefix("/"))
        return self._interceptor.intercept_service(lambda _: handler, details)


class _Tracers:
    """Tracers whose spans record no exception by themselves: grpcio raises an empty one to abort a
    call, and what led to that is recorded where it is known."""

    def get_tracer(self, *arguments: Any, **options: Any) -> Any:
        tracer = trace.get_tracer_provider().get_tracer(*arguments, **options)
        return SimpleNamespace(
            start_as_current_span=partial(tracer.start_as_current_span, record_exception=False)
        )
