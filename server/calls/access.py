"""Authenticate, rate-limit and authorise before reading the request; reduce what writers see."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import cast

import grpc

from server.access.authentication import Authenticator
from server.access.authorization import WriteAnswer, authorize, requires_read, visible_to
from server.access.rate_limits import RateLimiter
from server.calls.current import current_call
from server.calls.interceptor import Behavior, CallInterceptor, Handler, StreamBehavior
from server.principal import ANONYMOUS, Principal

_REFLECTION = "/grpc.reflection."
# Per client. An answer with all files costs ten times as much as a call; grpcurl asks 20 at most.
_REFLECTION_PER_SECOND, _REFLECTION_BURST = 50, 100


class AccessInterceptor(CallInterceptor):
    """Authenticate, rate-limit and authorise each call (AIP-211)."""

    def __init__(
        self,
        authenticator: Authenticator,
        rate_limiter: RateLimiter | None,
        *,
        reflection_is_open: bool,
    ) -> None:
        self._authenticator = authenticator
        self._rate_limiter = rate_limiter
        self._reflection_is_open = reflection_is_open
        self._reflection_limiter = RateLimiter(_REFLECTION_PER_SECOND, _REFLECTION_BURST)

    @contextmanager
    def around(self, method: str, request: object, context: grpc.ServicerContext) -> Iterator[None]:
        is_reflection = method.startswith(_REFLECTION)
        if not (is_reflection and self._reflection_is_open):
            principal = current_call().principal = self._authenticated(context)
            if self._rate_limiter:
                self._rate_limiter.check(principal.name)
            if not is_reflection:  # Reflection needs no scope.
                authorize(principal, method)
        yield

    def unary(self, method: str, handler: Handler) -> Behavior:
        behavior = super().unary(method, handler)
        if requires_read(method):
            return behavior

        def unary(request: object, context: grpc.ServicerContext) -> object:
            answer = behavior(request, context)
            return visible_to(current_call().principal, cast(WriteAnswer, answer))

        return unary

    def stream(self, method: str, handler: Handler) -> StreamBehavior:
        """Count each message of a stream of requests as a call."""
        behavior = super().stream(method, handler)
        if not handler.request_streaming:
            return behavior

        def stream(requests: object, context: grpc.ServicerContext) -> Iterator[object]:
            return behavior(self._limited(cast(Iterable[object], requests), context), context)

        return stream

    def _authenticated(self, context: grpc.ServicerContext) -> Principal:
        identity = current_call().identity or self._authenticator.authenticate(context)
        if isinstance(identity, Exception):
            raise identity
        return identity

    def _limited(
        self, requests: Iterable[object], context: grpc.ServicerContext
    ) -> Iterator[object]:
        """Raises: RateLimitedError."""
        for request in requests:
            principal = current_call().principal
            client = context.peer() if principal.name == ANONYMOUS.name else principal.name
            self._reflection_limiter.check(client)
            if self._rate_limiter:
                self._rate_limiter.check(client)
            yield request
