"""Make the spans of sampled calls with OpenTelemetry's interceptor.

Other calls skip it: it costs as much as all other telemetry of a call, even without a span.
"""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import grpc
from opentelemetry import trace
from opentelemetry.instrumentation.grpc import server_interceptor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Sampler

from server.telemetry.sampling import head_sampled

B = TypeVar("B", bound=Callable[..., object])

_NEVER_SAMPLED = "/grpc.reflection."


class Tracing:
    """Decide for each call whether it is traced."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._interceptor: Any = server_interceptor(_Tracers())  # type: ignore[no-untyped-call]

    def of(self, method: str, untraced: B, *, is_stream: bool) -> B:
        """Return the behavior of the method, with a span for a sampled call."""
        kind = "unary_stream" if is_stream else "unary_unary"
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        name = method.removeprefix("/")
        details = SimpleNamespace(method=name)  # All that the interceptor reads.
        handler = self._interceptor.intercept_service(lambda _: make(untraced), details)
        traced = getattr(handler, kind)
        sampler = ALWAYS_OFF if method.startswith(_NEVER_SAMPLED) else self._sampler

        def serve(request: object, context: grpc.ServicerContext) -> object:
            is_sampled = head_sampled(sampler, name, context.invocation_metadata())
            return (traced if is_sampled else untraced)(request, context)

        return cast(B, serve)


class _Tracers:
    """Provide tracers whose spans do not record exceptions: grpcio aborts a call by an empty
    exception, and the path of calls records its cause."""

    def get_tracer(self, *arguments: Any, **options: Any) -> SimpleNamespace:
        tracer = trace.get_tracer_provider().get_tracer(*arguments, **options)
        return SimpleNamespace(
            start_as_current_span=partial(tracer.start_as_current_span, record_exception=False)
        )
