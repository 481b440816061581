"""Nothing of a call is looked at before it is known who calls, that he may, and not too often."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from server.authentication import Authenticator
from server.authorization import authorize
from server.call import current_call
from server.interceptors.base import CallInterceptor
from server.rate import RateLimiter


class AccessInterceptor(CallInterceptor):
    """Lets a call in: authenticated, authorised, counted, and only then read (AIP-211)."""

    def __init__(self, authenticator: Authenticator, rate_limiter: RateLimiter | None) -> None:
        self._authenticator = authenticator
        self._rate_limiter = rate_limiter

    @contextmanager
    def around(self, method: str, request: Any, context: grpc.ServicerContext) -> Iterator[None]:
        principal = self._authenticator.authenticate(context)
        current_call().principal = principal
        authorize(principal, method)
        if self._rate_limiter:
            self._rate_limiter.check(principal)
        if isinstance(request, Exception):  # What the error interceptor could not read.
            raise request
        yield
