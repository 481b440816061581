"""The span of a call: decided first, and made only when somebody will see it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import grpc
from opentelemetry.instrumentation.grpc import server_interceptor
from opentelemetry.sdk.trace.sampling import Sampler

from server.interceptors.base import Behavior, CallInterceptor, Handler
from server.telemetry import head_sampled


class TracingInterceptor(CallInterceptor):
    """OpenTelemetry's interceptor, around those calls that are sampled.

    It costs as much as the rest of a call's telemetry together, also for a call that is not
    sampled. Such a call takes a short way that only carries the trace's context on.
    """

    def __init__(self, streams: ThreadPoolExecutor, sampler: Sampler) -> None:
        super().__init__(streams)
        self._sampler = sampler
        self._interceptor: Any = server_interceptor()  # type: ignore[no-untyped-call]

    def around(self, method: str, request: Any, context: grpc.ServicerContext) -> Any:
        return head_sampled(self._sampler, method, context.invocation_metadata())

    def unary(self, method: str, handler: Handler) -> Behavior:
        behavior: Any = handler.unary_unary
        traced: Any = self._traced(method, handler).unary_unary

        def unary(request: Any, context: grpc.ServicerContext) -> Any:
            with self.around(method, request, context) as sampled:
                return (traced if sampled else behavior)(request, context)

        return unary

    def stream(self, method: str, handler: Handler) -> Behavior:
        behavior: Any = handler.unary_stream
        traced: Any = self._traced(method, handler).unary_stream

        def stream(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with self.around(method, request, context) as sampled:
                yield from (traced if sampled else behavior)(request, context)

        return stream

    def _traced(self, method: str, handler: Handler) -> Any:
        """The handler within OpenTelemetry's interceptor, which takes only the name from here."""
        details = SimpleNamespace(method=method.removeprefix("/"))
        return self._interceptor.intercept_service(lambda _: handler, details)
