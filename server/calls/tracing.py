"""Make the spans of sampled calls with OpenTelemetry's interceptor."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import grpc
from opentelemetry import trace
from opentelemetry.instrumentation.grpc import server_interceptor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Sampler

from server.calls.interceptor import Behavior, CallInterceptor, Handler, StreamBehavior
from server.telemetry.tracing import head_sampled

B = TypeVar("B", Behavior, StreamBehavior)

_NEVER_SAMPLED = "grpc.reflection."


class TracingInterceptor(CallInterceptor):
    """Wrap sampled calls in OpenTelemetry's interceptor.

    The library's interceptor costs as much as all other telemetry of a call, even for a call that
    is not sampled. Such a call skips it and only propagates its trace context.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._interceptor: Any = server_interceptor(_Tracers())  # type: ignore[no-untyped-call]

    def unary(self, method: str, handler: Handler) -> Behavior:
        return self._either(method, handler.unary_unary, self._traced(method, handler).unary_unary)

    def stream(self, method: str, handler: Handler) -> StreamBehavior:
        traced = self._traced(method, handler)
        return self._either(
            method,
            handler.unary_stream or handler.stream_stream,
            traced.unary_stream or traced.stream_stream,
        )

    def _either(self, method: str, untraced: B, traced: B) -> B:
        """Return a behavior that decides for each call whether it is traced."""
        name = method.removeprefix("/")
        sampler = ALWAYS_OFF if name.startswith(_NEVER_SAMPLED) else self._sampler

        def either(request: object, context: grpc.ServicerContext) -> object:
            is_sampled = head_sampled(sampler, name, context.invocation_metadata())
            return (traced if is_sampled else untraced)(request, context)

        return cast(B, either)

    def _traced(self, method: str, handler: Handler) -> Handler:
        """Return the handler within OpenTelemetry's interceptor, which only reads the name."""
        details = SimpleNamespace(method=method.removeprefix("/"))
        return cast(Handler, self._interceptor.intercept_service(lambda _: handler, details))


class _Tracers:
    """Provide tracers whose spans do not record exceptions: grpcio aborts a call by an empty
    exception, and `ErrorInterceptor` records its cause."""

    def get_tracer(self, *arguments: Any, **options: Any) -> SimpleNamespace:
        tracer = trace.get_tracer_provider().get_tracer(*arguments, **options)
        return SimpleNamespace(
            start_as_current_span=partial(tracer.start_as_current_span, record_exception=False)
        )
