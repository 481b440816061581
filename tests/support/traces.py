"""Trace contexts as a client sends them (W3C Trace Context)."""

from __future__ import annotations

import secrets
from typing import NamedTuple


class Trace(NamedTuple):
    """A trace that a client has begun, and its span that calls are made in."""

    id: str
    span_id: str

    def metadata(self, flags: str = "01") -> tuple[tuple[str, str], ...]:
        return (("traceparent", f"00-{self.id}-{self.span_id}-{flags}"),)


def new_trace() -> Trace:
    return Trace(secrets.token_hex(16), secrets.token_hex(8))
