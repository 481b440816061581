"""Authenticate, rate-limit and authorise a call before its request is read (AIP-211)."""

from collections.abc import Iterator
from typing import cast

import grpc

from server.access.authentication import Authenticator
from server.access.authorization import authorize
from server.access.principal import ANONYMOUS
from server.access.rate_limits import RateLimiter
from server.calls.current import Call
from server.settings import Settings

# A principal may send the calls of this many seconds at once.
BURST_SECONDS = 2

_REFLECTION = "/grpc.reflection."
# Per client. An answer with all files costs ten times as much as a call; grpcurl asks 20 at most.
_REFLECTION_PER_SECOND, _REFLECTION_BURST = 50, 100


class Access:
    """Decide whether a client may make a call."""

    def __init__(self, settings: Settings, authenticator: Authenticator) -> None:
        rate = settings.calls_per_second
        self._authenticator = authenticator
        self._rate_limiter = RateLimiter(rate, BURST_SECONDS * rate) if rate else None
        self._reflection_is_open = settings.reflection_for == "on"
        self._reflection_limiter = RateLimiter(_REFLECTION_PER_SECOND, _REFLECTION_BURST)

    def check(self, call: Call, method: str, context: grpc.ServicerContext) -> None:
        """Set the principal of the call.

        Raises: UnauthenticatedError, KeysUnavailableError, RateLimitedError, PermissionDeniedError.
        """
        is_reflection = method.startswith(_REFLECTION)
        if is_reflection and self._reflection_is_open:
            return
        identity = call.identity or self._authenticator.authenticate(context)
        if isinstance(identity, Exception):
            raise identity
        call.principal = identity
        if self._rate_limiter:
            self._rate_limiter.check(identity.name)
        if not is_reflection:  # Reflection needs no scope.
            authorize(identity, method)

    def limited(self, call: Call, requests: object) -> Iterator[object]:
        """Count each request of a stream as a call. Raises: RateLimitedError."""
        is_anonymous = call.principal.name == ANONYMOUS.name
        client = call.peer if is_anonymous else call.principal.name
        for request in cast(Iterator[object], requests):
            self._reflection_limiter.check(client)
            if self._rate_limiter:
                self._rate_limiter.check(client)
            yield request
