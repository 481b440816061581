"""Read the public keys of an issuer of tokens: a JWKS (RFC 7517), in a file or behind a URL.

A thread refreshes them; a call never does. PyJWT's client fetches when a token names an unknown
key, so that a client could trigger requests.
"""

import copy
import json
import socket
import threading
from collections.abc import Callable, Mapping, Set
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TypeAlias
from urllib.request import HTTPHandler, HTTPRedirectHandler, HTTPSHandler, build_opener

import structlog
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt import PyJWK

from server.access.tokens import ED25519, EDDSA
from server.periodic import Periodic

log = structlog.get_logger()

REFRESH_SECONDS = 60.0
_TIMEOUT_SECONDS = 5.0
_DEADLINE_SECONDS = 10.0
_RETRY_SECONDS = 5.0
_MAX_BYTES = 1024 * 1024
_LOGGED = 20
_LOGGED_CHARACTERS = 100

# By algorithm and kid, as a token's header names them.
Keys: TypeAlias = Mapping[tuple[str, str | None], PyJWK]


class _LeftOutError(Exception):
    """A key of a set is not used."""


class KeySet:
    """Report the keys when they change; they stay while the set is malformed or unreadable."""

    def __init__(
        self, source: Path | str, algorithms: Set[str], on_change: Callable[[Keys], None]
    ) -> None:
        self._source = source
        self._algorithms = algorithms
        self._on_change = on_change
        periodic = Periodic("keys", self._run, REFRESH_SECONDS)
        self.start, self.stop = periodic.start, periodic.stop
        self._known: bytes | None = None
        self._problem = ""

    def _run(self) -> float | None:
        try:
            self._refresh()
        except Exception as error:
            if (problem := str(error)) != self._problem:
                log.warning("keys cannot be read; the known keys stay", why=problem)
            self._problem = problem
            return min(REFRESH_SECONDS, _RETRY_SECONDS)
        self._problem = ""
        return None

    def _refresh(self) -> None:
        source = self._source
        document = _read_file(source) if isinstance(source, Path) else _fetch(source)
        if document != self._known:
            keys, left_out = public_keys(document, self._algorithms)
            self._on_change(keys)
            self._known = document
            write = log.info if keys else log.warning  # Without keys all calls are rejected.
            write("new keys", kids=sorted({str(kid) for _, kid in keys}))
            if left_out:
                log.warning("keys are left out", count=len(left_out), why=left_out[:_LOGGED])


def public_keys(document: bytes, algorithms: Set[str]) -> tuple[Keys, list[str]]:
    """Return the keys for signatures by these algorithms, and why the others are left out.

    A key serves its own algorithm, by all names of it. An empty set is valid: an issuer may revoke
    its last key. Raises: ValueError, if the document is no JWKS.
    """
    keys: dict[tuple[str, str | None], PyJWK] = {}
    left_out = []
    for jwk in _listed(json.loads(document)):
        try:
            key = _public_key(jwk, algorithms)
        except _LeftOutError as error:
            kid = jwk.get("kid") if isinstance(jwk, dict) else None
            left_out.append(f"{str(kid)[:_LOGGED_CHARACTERS]}: {error}")
        else:
            keys[key.algorithm_name, key.key_id] = key
            if key.algorithm_name == EDDSA:
                other = copy.copy(key)
                other.algorithm_name = ED25519  # PyJWT does not know the name.
                keys[ED25519, key.key_id] = other
    return keys, left_out


def _listed(content: object) -> list[dict[str, object]]:
    match content:
        case {"keys": [*listed]}:
            return listed
    raise ValueError("the document is no set of keys")


def _public_key(jwk: dict[str, object], algorithms: Set[str]) -> PyJWK:
    """Return a key if it is public, strong, named, and for signatures.

    Raises: _LeftOutError, without any part of the key: it may be a secret.
    """
    try:
        key = PyJWK(jwk, EDDSA if jwk.get("alg") == ED25519 else None)
    except Exception:  # Parsers raise many kinds.
        raise _LeftOutError("it is incomplete, or of a kind that is not known") from None
    if not isinstance(key.key, RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey):
        raise _LeftOutError("it is no public key for signatures")
    if not isinstance(key.key_id, str):
        raise _LeftOutError("it has no kid")
    if key.public_key_use not in (None, "sig"):
        raise _LeftOutError("its use is not sig")
    if key.algorithm_name not in algorithms:
        raise _LeftOutError(f"its algorithm, {key.algorithm_name}, is not one of ALGORITHM")
    if key.Algorithm.check_key_length(key.key):
        raise _LeftOutError("it is too short")
    return key


class _NoRedirects(HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        return None


class _DeadlineHandler(HTTPSHandler, HTTPHandler):
    """Close a connection from another thread: urllib's timeout bounds each read only."""

    is_late = False
    _socket: socket.socket | None = None

    def do_open(self, http_class: Any, req: Any, **options: Any) -> Any:
        outer = self

        class Connection(http_class):  # type: ignore[misc]
            def connect(self) -> None:
                super().connect()
                outer._socket = self.sock

        return super().do_open(Connection, req, **options)

    def hang_up(self) -> None:
        self.is_late = True
        with suppress(OSError):  # It may have ended.
            if self._socket:
                self._socket.shutdown(socket.SHUT_RDWR)


def _read_file(path: Path) -> bytes:
    with path.open("rb") as file:
        return _limited(file)


def _fetch(url: str) -> bytes:
    handler = _DeadlineHandler()
    timer = threading.Timer(_DEADLINE_SECONDS, handler.hang_up)
    timer.start()
    try:
        opener = build_opener(_NoRedirects, handler)
        with opener.open(url, timeout=_TIMEOUT_SECONDS) as response:
            return _limited(response)
    finally:
        timer.cancel()
        if handler.is_late:  # A part may look like an answer.
            raise TimeoutError(f"the set took longer than {_DEADLINE_SECONDS} s")


def _limited(file: IO[bytes]) -> bytes:
    content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise ValueError(f"the set has more than {_MAX_BYTES} bytes")
    return content
