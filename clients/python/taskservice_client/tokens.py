"""The expiry of a bearer token, so that it is renewed in time."""

from __future__ import annotations

import base64
import json
import math
from typing import TypeAlias

Metadata: TypeAlias = tuple[tuple[str, str], ...]

_EARLY_SECONDS = 60.0


def bearer(token: str) -> Metadata:
    """Return the metadata that carries a token."""
    return (("authorization", f"Bearer {token}"),)


def expiry_of(token: str) -> float:
    """Return the `exp` of a JWT, without verifying it; infinity if it has none."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return float(claims["exp"])
    except (IndexError, KeyError, TypeError, ValueError):
        return math.inf


def renewal_of(token: str, now: float) -> float:
    """Return when to renew a token: a minute, or a fifth of what is left, before its expiry."""
    expiry = expiry_of(token)
    return expiry - min(_EARLY_SECONDS, max(expiry - now, 0) / 5)
