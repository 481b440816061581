"""Report the variables that look like settings and have no effect."""

import os
from collections.abc import Iterator
from difflib import get_close_matches

from dotenv import dotenv_values

from server.settings.settings import Settings

_REMOVED = """
    ADMIN_ENABLED CONNECTION_AGE_GRACE_SECONDS CONNECTION_AGE_SECONDS CONNECTION_IDLE_SECONDS
    DB_MAX_OVERFLOW DB_POOL_RECYCLE_SECONDS DB_POOL_SIZE DB_POOL_TIMEOUT_SECONDS
    DB_STATEMENT_TIMEOUT_SECONDS DB_TRACE_COMMENTS HANDSHAKE_SECONDS
    HEALTH_CHECK_INTERVAL_SECONDS JWKS_FILE JWKS_REFRESH_SECONDS MAX_BATCH_ITEMS
    MAX_BATCH_REQUEST_BYTES MAX_CONNECTIONS_PER_WORKER MAX_FILTER_DEPTH MAX_FILTER_TERMS
    MAX_METADATA_BYTES MAX_PAGE_SIZE MAX_REQUEST_BYTES MAX_STREAMS_PER_CONNECTION MAX_UNREAD_BYTES
    MAX_WATCHES_PER_PRINCIPAL MAX_WATCHES_PER_WORKER MIN_PING_INTERVAL_SECONDS
    RATE_LIMIT_BURST REQUEST_ID_RETENTION_HOURS REQUEST_TIMEOUT_SECONDS SLOW_CALL_SECONDS
    TASK_COUNT_INTERVAL_SECONDS WATCH_BOOKMARK_INTERVAL_SECONDS WATCH_STALL_SECONDS
"""


def ignored_variables() -> Iterator[str]:
    """Yield a line for each unknown variable in `.env`, and for each removed setting."""
    known = [name.upper() for name in Settings.model_fields]
    file = Settings.model_config.get("env_file")
    in_file = dotenv_values(file) if isinstance(file, str) else {}
    removed = set(_REMOVED.split())
    unknown = {name.upper() for name in in_file}.difference(known)
    for name in sorted(unknown | (removed & os.environ.keys())):
        yield f"{name}: {_reason(name, known)}; it is ignored"


def _reason(name: str, known: list[str]) -> str:
    if name in _REMOVED.split():
        return "is no longer a setting"
    if name.startswith("OTEL_"):
        return "is read from the environment only, not from .env"
    (nearest,) = get_close_matches(name, known, n=1, cutoff=0)
    return f"is unknown in .env, the nearest setting is {nearest}"
