"""Authenticate, rate-limit and authorise a call before its request is read (AIP-211)."""

from collections.abc import Iterator
from typing import cast

import grpc
from throttled import RateLimiterType, Throttled, per_sec
from throttled.store import MemoryStore

from server.access.authentication import Authenticator
from server.access.authorization import authorize
from server.access.principal import ANONYMOUS
from server.calls.current import Call
from server.errors import RateLimitedError
from server.settings import Settings

# A principal may send the calls of this many seconds at once.
BURST_SECONDS = 2

# The most recent ones, about 300 bytes each. Others begin with a full burst.
_MAX_CLIENTS = 10_000
_REFLECTION = "/grpc.reflection."
# Per client. An answer with all files costs ten times as much as a call; grpcurl asks 20 at most.
_REFLECTION_PER_SECOND, _REFLECTION_BURST = 50, 100


class Access:
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


class RateLimiter:
    """Limit the calls of each client in this process: a rate, and a burst (GCRA)."""

    def __init__(self, per_second: int, burst: int) -> None:
        self._throttled = Throttled(
            using=RateLimiterType.GCRA.value,
            quota=per_sec(per_second, burst),
            store=MemoryStore(options={"MAX_SIZE": _MAX_CLIENTS}),
        )

    def check(self, client: str) -> None:
        """Count a call. Raises: RateLimitedError."""
        result = self._throttled.limit(client)
        if result.limited:
            raise RateLimitedError(client, result.state.retry_after)
