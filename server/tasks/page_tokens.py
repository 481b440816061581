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
    """Encrypts and decrypts tokens of one purpose: "page" or "resume"."""

    def __init__(self, keys: Sequence[bytes], purpose: str) -> None:
        """Derive the ciphers: the first key encrypts, every key decrypts."""
        info = f"taskservice {purpose} token 1".encode()
        self._ciphers = [
            AESGCM(HKDF(SHA256(), 32, salt=None, info=info).derive(key)) for key in keys
        ]
        self._reason = f"{purpose.upper()}_TOKEN_INVALID"

    def seal(self, position: Cursor, *binding: object) -> str:
        """Encrypt a position in the list or stream that the binding identifies."""
        values = [[_TIME, v.isoformat()] if isinstance(v, dt.datetime) else v for v in position]
        nonce = os.urandom(_NONCE_BYTES)
        content = json.dumps(values, ensure_ascii=False).encode()  # Escapes treble the size.
        sealed = self._ciphers[0].encrypt(nonce, content, _digest(binding))
        return _encode(nonce + sealed)

    def open(self, token: str, *binding: object) -> Cursor:
        """Decrypt a position. Raises: FieldError, if the token is not one of this binding."""
        try:
            content = self._decrypted(_decode(token), _digest(binding))
        except (InvalidTag, ValueError):
            raise FieldError(
                "is not a token of this request: send it unchanged, with the fields that must "
                "not change",
                self._reason,
            ) from None
        return tuple(
            dt.datetime.fromisoformat(v[1]) if isinstance(v, list) else v
            for v in json.loads(content)
        )

    def _decrypted(self, sealed: bytes, binding: bytes) -> bytes:
        """Decrypt a token. Raises: InvalidTag, if no key fits; ValueError, if it is too short."""
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
    if _encode(sealed) != token:  # Base64 has spare bits: reject other spellings.
        raise ValueError(token)
    return sealed


def _digest(binding: tuple[object, ...]) -> bytes:
    return hashlib.sha256(json.dumps(binding).encode()).digest()
