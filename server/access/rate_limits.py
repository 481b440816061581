"""Limit the rate of calls."""

from throttled import RateLimiterType, Throttled, per_sec
from throttled.store import MemoryStore

from server.errors import RateLimitedError

# The most recent ones, about 300 bytes each. Others begin with a full burst.
_MAX_CLIENTS = 10_000


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
