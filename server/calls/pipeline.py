"""Assemble the interceptors around every call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias, cast

import grpc
from opentelemetry.sdk.trace.sampling import Sampler

from server.access.authentication import Authenticator
from server.access.rate_limits import RateLimiter
from server.calls.access import AccessInterceptor
from server.calls.accounting import AccountingInterceptor, account_for_unknown
from server.calls.cancellation import CancellationInterceptor
from server.calls.current import begin_call
from server.calls.decoding import DecodingInterceptor
from server.calls.failures import ErrorInterceptor
from server.calls.interceptor import CallInterceptor, Handler
from server.calls.tracing import TracingInterceptor
from server.settings import Settings
from storage.database import Database

_GrpcHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

# A principal may send the calls of this many seconds at once.
BURST_SECONDS = 2

_WRAPPED_PACKAGES = "/taskservice.v1.", "/grpc.reflection."


def interceptors(
    settings: Settings, authenticator: Authenticator, database: Database, sampler: Sampler
) -> list[CallInterceptor]:
    """Return the interceptors, the outermost first."""
    rate = settings.calls_per_second
    return [
        # Outermost: log lines, metrics and statements belong to the span.
        TracingInterceptor(sampler),
        # Outside of errors: logs and counts the code that the client gets.
        AccountingInterceptor(),
        # Turns exceptions raised below into statuses.
        ErrorInterceptor(),
        # Authenticate, rate-limit and authorise before reading the request.
        AccessInterceptor(
            authenticator,
            RateLimiter(rate, BURST_SECONDS * rate) if rate else None,
            reflection_is_open=settings.reflection_for == "on",
        ),
        # A decoded request may be a hundred times as large as its bytes.
        DecodingInterceptor(),
        # Innermost: covers the statements and no more.
        CancellationInterceptor(database),
    ]


class Pipeline(grpc.ServerInterceptor):
    """Present all interceptors to grpcio as one.

    It wraps TaskService and its reflection. Other methods pass unchanged: unknown ones stay
    UNIMPLEMENTED, and health has threads of its own.
    """

    def __init__(
        self, interceptors: Sequence[CallInterceptor], streams: ThreadPoolExecutor
    ) -> None:
        self._interceptors = interceptors
        self._streams = streams
        self._wrapped: dict[str, _GrpcHandler] = {}

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], _GrpcHandler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _GrpcHandler | None:
        """Return the wrapped handler. This runs on the polling thread: it must be fast."""
        method = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            handler = continuation(handler_call_details)
            if handler is None:
                account_for_unknown(method)
            if handler is None or not method.startswith(_WRAPPED_PACKAGES):
                return handler
            wrapped = self._wrapped[method] = self._wrap(method, handler)
        begin_call(method, is_stream=wrapped.response_streaming)
        return wrapped

    def _wrap(self, method: str, handler: _GrpcHandler) -> _GrpcHandler:
        wrapped = cast(Handler, handler)
        for interceptor in reversed(self._interceptors):
            wrapped = interceptor.wrap(method, wrapped, self._streams)
        return cast(_GrpcHandler, wrapped)
