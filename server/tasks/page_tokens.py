"""Tokens: places in a list (AIP-158) or a stream that only this service can write and read.

A token is sealed (AES-256-GCM, its key derived from SECRET_KEY and its purpose) and bound to what
was asked and by whom: with another filter, order or principal it does not open. One that was sealed
with SECRET_KEY_PREVIOUS opens, too. It authorises nothing.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from server.tasks.validation import FieldError
from storage.query import Cursor

_NONCE_BYTES = 12
_TIME = "t"


class Tokens:
    """Seals and opens tokens of one purpose: "page" or "resume"."""

    def __init__(self, keys: Sequence[bytes], purpose: str) -> None:
        """The first key seals; each of them opens."""
        info = f"taskservice {purpose} token 1".encode()
        self._ciphers = [
            AESGCM(HKDF(SHA256(), 32, salt=None, info=info).derive(key)) for key in keys
        ]
        self._reason = f"{purpose.upper()}_TOKEN_INVALID"

    def seal(self, place: Cursor, *binding: object) -> str:
        """The token of a place in what the binding describes."""
        values = [[_TIME, v.isoformat()] if isinstance(v, dt.datetime) else v for v in place]
        nonce = os.urandom(_NONCE_BYTES)
        content = json.dumps(values, ensure_ascii=False).encode()  # Escapes would treble it.
        sealed = self._ciphers[0].encrypt(nonce, content, _digest(binding))
        return _encode(nonce + sealed)

    def open(self, token: str, *binding: object) -> Cursor:
        """The place that a token names. Raises: FieldError, for any token not sealed so."""
        try:
            content = self._decrypted(_decode(token), _digest(binding))
        except (InvalidTag, ValueError):
            raise FieldError(
                "is not a token of this call: pass it back as it came, with all that must not "
                "change as it was",
                self._reason,
            ) from None
        return tuple(
            dt.datetime.fromisoformat(v[1]) if isinstance(v, list) else v
            for v in json.loads(content)
        )

    def _decrypted(self, sealed: bytes, binding: bytes) -> bytes:
        """Raises: InvalidTag, when none of the keys opens it; ValueError, when it is too short."""
        nonce, content = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        *others, last = self._ciphers
        for cipher in others:
            with suppress(InvalidTag):
                return cipher.decrypt(nonce, content, binding)
        return last.decrypt(nonce, content, binding)


def _encode(sealed: bytes) -> str:
    return base64.urlsafe_b64encode(sealed).decode().rstrip("=")


def _decode(token: str) -> bytes:
    sealed = base64.b64decode(token + "=" * (-len(token) % 4), b"-_", validate=True)
    if _encode(sealed) != token:  # Base64 has spare bits; a token has one spelling.
        raise ValueError(token)
    return sealed


def _digest(binding: tuple[object, ...]) -> bytes:
    return hashlib.sha256(json.dumps(binding).encode()).digest()
