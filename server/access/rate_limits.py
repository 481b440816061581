"""How often a caller may call."""

from __future__ import annotations

from throttled import RateLimiterType, Throttled, per_sec
from throttled.store import MemoryStore

from server.errors import RateLimitedError

# Of those who called last, about 300 bytes each. One that is forgotten begins with a full burst.
_CALLERS = 10_000


class RateLimiter:
    """So many calls a second for each caller, in this process, after a burst (GCRA)."""

    def __init__(self, per_second: int, burst: int) -> None:
        self._throttled = Throttled(
            using=RateLimiterType.GCRA.value,
            quota=per_sec(per_second, burst),
            store=MemoryStore(options={"MAX_SIZE": _CALLERS}),
        )

    def check(self, caller: str) -> None:
        """Counts a call. Raises: RateLimitedError."""
        result = self._throttled.limit(caller)
        if result.limited:
            raise RateLimitedError(caller, result.state.retry_after)
