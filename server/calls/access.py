"""Authenticate the caller, check its rate and its scopes; and hold back what these do not show."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from server.access.authentication import Authenticator
from server.access.authorization import authorize, is_for_readers, shown
from server.access.rate_limits import RateLimiter
from server.calls.current import current_call
from server.calls.interceptor import Behavior, CallInterceptor, Handler
from server.principal import ANONYMOUS, Principal

_REFLECTION = "/grpc.reflection."
# An answer with all files costs ten times as much as a call; a client asks twenty at most.
_QUESTIONS_PER_SECOND, _QUESTIONS_AT_ONCE = 50, 100


class AccessInterceptor(CallInterceptor):
    """Lets a call in: authenticated, counted, authorised, and only then read (AIP-211)."""

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
        self._question_limiter = RateLimiter(_QUESTIONS_PER_SECOND, _QUESTIONS_AT_ONCE)

    @contextmanager
    def around(self, method: str, request: Any, context: grpc.ServicerContext) -> Iterator[None]:
        is_reflection = method.startswith(_REFLECTION)
        if not (is_reflection and self._reflection_is_open):
            principal = current_call().principal = self._authenticated(context)
            if self._rate_limiter:
                self._rate_limiter.check(principal.name)
            if not is_reflection:  # It needs no scope.
                authorize(principal, method)
        yield

    def unary(self, method: str, handler: Handler) -> Behavior:
        behavior = super().unary(method, handler)
        if is_for_readers(method):
            return behavior

        def unary(request: Any, context: grpc.ServicerContext) -> Any:
            answer = behavior(request, context)
            return shown(current_call().principal, answer)

        return unary

    def stream(self, method: str, handler: Handler) -> Behavior:
        """Each message of a stream of requests counts as a call does."""
        behavior = super().stream(method, handler)
        if not handler.request_streaming:
            return behavior

        def counting(requests: Any, context: grpc.ServicerContext) -> Any:
            return behavior(self._counted(requests, context), context)

        return counting

    def _authenticated(self, context: grpc.ServicerContext) -> Principal:
        identity = current_call().identity or self._authenticator.authenticate(context)
        if isinstance(identity, Exception):
            raise identity
        return identity

    def _counted(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        """Raises: RateLimitedError."""
        for request in requests:
            principal = current_call().principal
            caller = context.peer() if principal.name == ANONYMOUS.name else principal.name
            self._question_limiter.check(caller)
            if self._rate_limiter:
                self._rate_limiter.check(caller)
            yield request
