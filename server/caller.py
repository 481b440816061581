"""Who calls, and in which trace."""

from __future__ import annotations

from typing import NamedTuple

from opentelemetry.trace import format_trace_id, get_current_span

from storage.repository import Origin


class Principal(NamedTuple):
    """Who calls."""

    name: str


# Who calls, as long as calls bear no credentials.
ANONYMOUS = Principal("anonymous")


def origin(principal: Principal) -> Origin:
    """What the events of a write say about where it came from."""
    context = get_current_span().get_span_context()
    trace_id = format_trace_id(context.trace_id) if context.is_valid else None
    return Origin(principal.name, trace_id)
