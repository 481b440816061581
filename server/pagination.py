"""Page tokens (AIP-158): a place in a list that only this service can write and read.

A token is sealed (AES-256-GCM, its key derived from SECRET_KEY) and bound to what was asked and by
whom: with another filter, order or principal it does not open. It authorises nothing.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from server.validation import FieldError
from storage.query import Cursor

_NONCE_BYTES = 12
_TIME = "t"


class PageTokens:
    """Seals and opens page tokens."""

    def __init__(self, key: bytes) -> None:
        derived = HKDF(SHA256(), 32, salt=None, info=b"taskservice page token 1").derive(key)
        self._cipher = AESGCM(derived)

    def seal(self, cursor: Cursor, *binding: object) -> str:
        """The token of a place in the list that the binding describes."""
        values = [[_TIME, v.isoformat()] if isinstance(v, dt.datetime) else v for v in cursor]
        nonce = os.urandom(_NONCE_BYTES)
        content = json.dumps(values, ensure_ascii=False).encode()  # Escapes would treble it.
        sealed = self._cipher.encrypt(nonce, content, _digest(binding))
        return _encode(nonce + sealed)

    def open(self, token: str, *binding: object) -> Cursor:
        """The place that a token names. Raises: FieldError, for any token not sealed so."""
        try:
            sealed = _decode(token)
            content = self._cipher.decrypt(
                sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], _digest(binding)
            )
        except (InvalidTag, ValueError):
            raise FieldError(
                "is not a token of this list: pass next_page_token back as it came, "
                "with the same filter, order_by and show_deleted",
                "PAGE_TOKEN_INVALID",
            ) from None
        return tuple(
            dt.datetime.fromisoformat(v[1]) if isinstance(v, list) else v
            for v in json.loads(content)
        )


def _encode(sealed: bytes) -> str:
    return base64.urlsafe_b64encode(sealed).decode().rstrip("=")


def _decode(token: str) -> bytes:
    sealed = base64.b64decode(token + "=" * (-len(token) % 4), b"-_", validate=True)
    if _encode(sealed) != token:  # Base64 has spare bits; a token has one spelling.
        raise ValueError(token)
    return sealed


def _digest(binding: tuple[object, ...]) -> bytes:
    return hashlib.sha256(json.dumps(binding).encode()).digest()
