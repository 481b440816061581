"""What happens around every call of ours, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from opentelemetry.sdk.trace.sampling import Sampler

from server.access.authentication import Authenticator
from server.access.rate_limits import RateLimiter
from server.calls.access import AccessInterceptor
from server.calls.accounting import AccountingInterceptor, account_for_unknown
from server.calls.cancellation import CancellationInterceptor
from server.calls.current import arrived
from server.calls.decoding import DecodingInterceptor
from server.calls.failures import ErrorInterceptor
from server.calls.interceptor import CallInterceptor, Handler
from server.calls.tracing import TracingInterceptor
from server.calls.unread import UnreadAnswers
from server.settings import Settings
from storage.database import Database

_OURS = "/taskservice.v1.", "/grpc.reflection."


def interceptors(
    settings: Settings, authenticator: Authenticator, database: Database, sampler: Sampler
) -> list[CallInterceptor]:
    """The interceptors, the outermost first."""
    rate, burst = settings.calls_per_second, settings.rate_limit_burst
    return [
        # Outermost: log lines, metrics and statements happen within the span.
        TracingInterceptor(sampler),
        # Outside of errors, so that it sees the code a caller sees.
        AccountingInterceptor(settings.slow_call_seconds, UnreadAnswers(settings.max_unread_bytes)),
        # Whatever is raised below becomes a status here.
        ErrorInterceptor(),
        # Nothing below it is for strangers, nor for who calls too often.
        AccessInterceptor(
            authenticator,
            RateLimiter(rate, burst or 2 * rate) if rate else None,
            reflection_is_open=settings.reflection_for == "on",
        ),
        # Until here a request is bytes: what they become may be a hundred times as large.
        DecodingInterceptor(
            max_request_bytes=settings.max_request_bytes,
            max_batch_request_bytes=settings.max_batch_request_bytes,
        ),
        # Innermost: it covers the statements and no more.
        CancellationInterceptor(database),
    ]


class Pipeline(grpc.ServerInterceptor):
    """All interceptors, as the one that grpcio knows.

    Around our service and its reflection. Anything else passes through untouched: unknown methods
    stay UNIMPLEMENTED, and the health service's streams stay alive.
    """

    def __init__(
        self, interceptors: Sequence[CallInterceptor], streams: ThreadPoolExecutor
    ) -> None:
        self._interceptors = interceptors
        self._streams = streams
        self._wrapped: dict[str, Handler] = {}

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """A call has arrived, on the thread that all calls arrive on: nothing slow happens here."""
        method = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            handler = continuation(handler_call_details)
            if handler is None:
                account_for_unknown(method)
            if handler is None or not method.startswith(_OURS):
                return handler
            wrapped = self._wrapped[method] = self._wrap(method, handler)
        arrived(method, is_stream=wrapped.response_streaming)
        return wrapped

    def _wrap(self, method: str, handler: Any) -> Handler:
        for interceptor in reversed(self._interceptors):
            handler = interceptor.wrap(method, handler, self._streams)
        wrapped: Handler = handler
        return wrapped
