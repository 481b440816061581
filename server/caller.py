"""Who calls, and in which trace."""

from __future__ import annotations

import re

import grpc

from storage.repository import Origin

# Who calls, as long as calls bear no credentials.
ANONYMOUS = "anonymous"

# W3C Trace Context: version, trace id, parent id, flags; an id of zeros is none.
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-.*")


def origin_of(context: grpc.ServicerContext) -> Origin:
    """What the events of a write say about where it came from."""
    for key, value in context.invocation_metadata():
        if key == "traceparent" and (match := _TRACEPARENT.fullmatch(str(value))):
            return Origin(ANONYMOUS, match[1])
    return Origin(ANONYMOUS)
