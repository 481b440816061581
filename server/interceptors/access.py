"""Authenticate the caller, check its rate and its scopes; and hold back what these do not show."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from server.authentication import Authenticator
from server.authorization import authorize, is_for_readers, shown
from server.call import current_call
from server.interceptors.base import Behavior, CallInterceptor, Handler
from server.rate import RateLimiter

_REFLECTION = "/grpc.reflection."


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

    @contextmanager
    def around(self, method: str, request: Any, context: grpc.ServicerContext) -> Iterator[None]:
        is_reflection = method.startswith(_REFLECTION)
        if not (is_reflection and self._reflection_is_open):
            principal = self._authenticator.authenticate(context)
            current_call().principal = principal
            if self._rate_limiter:
                self._rate_limiter.check(principal)
            if not is_reflection:  # It needs no scope.
                authorize(principal, method)
        if isinstance(request, Exception):  # What the error interceptor could not read.
            raise request
        yield

    def unary(self, method: str, handler: Handler) -> Behavior:
        behavior = super().unary(method, handler)
        if is_for_readers(method):
            return behavior

        def unary(request: Any, context: grpc.ServicerContext) -> Any:
            answer = behavior(request, context)
            return shown(current_call().principal, answer)

        return unary
