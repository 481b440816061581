"""Values and helpers for tests of the settings."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from server.settings import Settings, SettingsError

SECRET = "correct-horse-battery-staple-2026"  # noqa: S105
URL = f"postgresql://someone:{SECRET}@db.example/tasks"
PLAIN = {"TLS_TERMINATED_UPSTREAM": "true"}
SAFE = {
    "ENVIRONMENT": "production",
    "DATABASE_URL": URL,
    "SECRET_KEY": SECRET,
    "AUTH_MODE": "none",
} | PLAIN

NO_PLAINTEXT = (
    "must be set in production; or TLS_TERMINATED_UPSTREAM, "
    "if a proxy or a mesh in front of the service terminates TLS"
)

Load = Callable[..., Settings]


def mistakes(load: Load, dotenv: str | bytes = "", **environment: str) -> list[str]:
    """Load the settings; return the lines of the error."""
    with pytest.raises(SettingsError) as raised:
        load(dotenv, **environment)
    return raised.value.lines
