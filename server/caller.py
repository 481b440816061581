"""Who calls, what he may do, and in which trace."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

from opentelemetry.trace import format_trace_id, get_current_span

from storage.repository import Origin

Scope: TypeAlias = Literal["tasks:read", "tasks:write", "tasks:admin"]


class Principal(NamedTuple):
    """Who calls, and the scopes of what he may do."""

    name: str
    scopes: frozenset[Scope] = frozenset()


# Who calls, as long as nothing is known of him: he may do nothing.
ANONYMOUS = Principal("anonymous")


def origin(principal: Principal) -> Origin:
    """What the events of a write say about where it came from."""
    context = get_current_span().get_span_context()
    trace_id = format_trace_id(context.trace_id) if context.is_valid else None
    return Origin(principal.name, trace_id)
