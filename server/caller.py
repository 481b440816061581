"""Who calls, and in which trace."""

from __future__ import annotations

from opentelemetry.trace import format_trace_id, get_current_span

from storage.repository import Origin

# Who calls, as long as calls bear no credentials.
ANONYMOUS = "anonymous"


def origin() -> Origin:
    """What the events of a write say about where it came from."""
    context = get_current_span().get_span_context()
    return Origin(ANONYMOUS, format_trace_id(context.trace_id) if context.is_valid else None)
