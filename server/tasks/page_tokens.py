"""Encrypt and decrypt page tokens (AIP-158) and resume tokens.

A token is a position, encrypted with AES-256-GCM under a key derived from SECRET_KEY and the
token's purpose, and bound to the request and the principal: with another filter, order or
principal it is invalid. SECRET_KEY_PREVIOUS still decrypts. A token grants no access.
"""

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
    """Encrypt and decrypt tokens of one purpose; a binding identifies their list or stream."""

    def __init__(self, keys: Sequence[bytes], purpose: str) -> None:
        """Derive the ciphers: the first key encrypts, every key decrypts."""
        info = f"taskservice {purpose} token 1".encode()
        self._ciphers = [
            AESGCM(HKDF(SHA256(), 32, salt=None, info=info).derive(key)) for key in keys
        ]
        self._reason = f"{purpose.upper()}_TOKEN_INVALID"

    def seal(self, position: Cursor, binding: tuple[object, ...]) -> str:
        values = [[_TIME, v.isoformat()] if isinstance(v, dt.datetime) else v for v in position]
        nonce = os.urandom(_NONCE_BYTES)
        content = json.dumps(values, ensure_ascii=False).encode()  # Escapes treble the size.
        return _encode(nonce + self._ciphers[0].encrypt(nonce, content, _digest(binding)))

    def open(self, token: str, binding: tuple[object, ...]) -> Cursor:
        """Raises: FieldError, if the token is not one of this binding."""
        with suppress(ValueError):
            sealed, bound = _decode(token), _digest(binding)
            for cipher in self._ciphers:
                with suppress(InvalidTag):
                    content = cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], bound)
                    return tuple(
                        dt.datetime.fromisoformat(v[1]) if isinstance(v, list) else v
                        for v in json.loads(content)
                    )
        problem = "is not a token of this request"
        hint = "send it unchanged, with the fields that must not change"
        raise FieldError(f"{problem}: {hint}", self._reason)


def _encode(sealed: bytes) -> str:
    return base64.urlsafe_b64encode(sealed).decode().rstrip("=")


def _decode(token: str) -> bytes:
    sealed = base64.b64decode(token + "=" * (-len(token) % 4), b"-_", validate=True)
    if _encode(sealed) != token:  # Base64 has spare bits: reject other spellings.
        raise ValueError(token)
    return sealed


def _digest(binding: tuple[object, ...]) -> bytes:
    return hashlib.sha256(json.dumps(binding).encode()).digest()
