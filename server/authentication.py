"""Who calls: whom his token or his certificate names, or, where nobody asks, anybody.

Every credential that is not good is refused with the same words: which of its parts was wrong
helps nobody but him who guesses. The log has it at level DEBUG, without the credential.
"""

from __future__ import annotations

import base64
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple

import grpc
import jwt
import structlog
from jwt import PyJWK

from server.authorization import ALL_SCOPES
from server.caller import ANONYMOUS, Principal, Scope
from server.errors import KeysUnavailableError, UnauthenticatedError
from server.jwks import Keys, KeySet
from server.settings import SYMMETRIC, Settings

log = structlog.get_logger()

_LEEWAY_SECONDS = 30
_MAX_TOKEN_CHARACTERS = 8 * 1024
_MAX_NAME_CHARACTERS = 200
# Good ones only, so that nobody fills this with others: a few MiB.
_REMEMBERED = 4096


class Authenticator(ABC):
    """Says who calls."""

    @abstractmethod
    def authenticate(self, context: grpc.ServicerContext) -> Principal:
        """Raises: UnauthenticatedError; KeysUnavailableError, as long as it cannot know."""

    # What only those need whose keys change.

    def start(self) -> None:  # noqa: B027
        """Begins to keep itself up to date."""

    def stop(self) -> None:  # noqa: B027
        """Ends that."""

    def check(self) -> None:  # noqa: B027
        """Raises: KeysUnavailableError, as long as it can let nobody in."""


def authenticator(settings: Settings) -> Authenticator:
    """The one that AUTH_MODE names."""
    match settings.auth_mode:
        case "jwt":
            return TokenAuthenticator(settings)
        case "mtls":
            return CertificateAuthenticator(settings.mtls_scopes)
        case "none" | None:
            return OpenAuthenticator()


class OpenAuthenticator(Authenticator):
    """Lets everybody in, to do everything."""

    _anybody = Principal(ANONYMOUS.name, ALL_SCOPES)

    def authenticate(self, context: grpc.ServicerContext) -> Principal:
        return self._anybody


class CertificateAuthenticator(Authenticator):
    """Takes the name from the client's certificate, which the handshake has verified.

    What a name may do stands in the settings; "*" is for all that have no line of their own.
    """

    def __init__(self, scopes: Mapping[str, frozenset[Scope]]) -> None:
        self._scopes = scopes

    def authenticate(self, context: grpc.ServicerContext) -> Principal:
        name = certificate_name(context.auth_context())
        return Principal(name, self._scopes.get(name, self._scopes.get("*", frozenset())))


def certificate_name(properties: Mapping[str, Any]) -> str:
    """The first URI among a verified certificate's names (a SPIFFE id is one), else the first
    DNS name, else the common name (RFC 9525 calls that one a relic; some still have no other).

    Raises: UnauthenticatedError.
    """
    for kind in ("peer_uri", "peer_dns", "x509_common_name"):
        for value in properties.get(kind, ()):
            return _name(value.decode("utf-8", "surrogateescape"))
    raise UnauthenticatedError


class _Verified(NamedTuple):
    """What a good token says, and until when (seconds since 1970)."""

    principal: Principal
    expires: float


class TokenAuthenticator(Authenticator):
    """Verifies bearer tokens: signed JWTs (RFC 7519), by the rules of RFC 8725.

    A key is looked up by the algorithm and the kid in the token's header, and each key is good for
    one algorithm: no token makes a secret of a public key. Whatever else the header says of keys
    (`jku`, `x5u`, `jwk`) is not looked at.
    """

    def __init__(self, settings: Settings) -> None:
        self._issuer = settings.jwt_issuer
        self._audience = settings.jwt_audience
        self._secret: Keys = {}
        if SYMMETRIC in settings.algorithms:
            self._secret = {(SYMMETRIC, None): _secret_key(settings.key())}
        public = settings.algorithms - {SYMMETRIC}
        self._key_set: KeySet | None = None
        if source := settings.jwks_file or settings.jwks_url:
            self._key_set = KeySet(
                source, public, self._use, refresh_seconds=settings.jwks_refresh_seconds
            )
        self._use(None if public else {})

    def start(self) -> None:
        if self._key_set:
            self._key_set.start()

    def stop(self) -> None:
        if self._key_set:
            self._key_set.stop()

    def check(self) -> None:
        if self._public is None:
            raise KeysUnavailableError

    def authenticate(self, context: grpc.ServicerContext) -> Principal:
        principal, expires = self._verified(_bearer_token(context))
        if time.time() >= expires:
            raise UnauthenticatedError
        return principal

    def _use(self, public: Keys | None) -> None:
        """Verifies with these public keys from now on; None for those that are awaited.

        What is good is remembered, by the keys that it was verified with: with others it is not.
        """
        self._public = public
        self._verified = lru_cache(_REMEMBERED)(partial(self._verify, public))

    def _verify(self, public: Keys | None, token: str) -> _Verified:
        try:
            header = jwt.get_unverified_header(token)
            keys = {**(public or {}), **self._secret}
            return _told(self._claims(token, keys[header["alg"], header.get("kid")]))
        except Exception as error:  # A parser that stumbles over a token has refused it.
            if public is None:
                raise KeysUnavailableError from None  # It may be good by the keys to come.
            log.debug("token refused", why=type(error).__name__)
            raise UnauthenticatedError from None

    def _claims(self, token: str, key: PyJWK) -> dict[str, Any]:
        return jwt.decode(
            token,
            key,
            algorithms=[key.algorithm_name],
            issuer=self._issuer,
            audience=self._audience,
            leeway=_LEEWAY_SECONDS,
            options={"require": ["exp", "iat", "sub"]},
        )


def _told(claims: dict[str, Any]) -> _Verified:
    """What the claims say; `scope` as in RFC 8693, or as a list. Unknown scopes are ignored."""
    scope = claims.get("scope", "")
    scopes = ALL_SCOPES.intersection(scope.split() if isinstance(scope, str) else scope)
    return _Verified(Principal(_name(claims["sub"]), scopes), int(claims["exp"]) + _LEEWAY_SECONDS)


def _bearer_token(context: grpc.ServicerContext) -> str:
    """The token of `authorization: Bearer …` (RFC 6750). Raises: UnauthenticatedError."""
    values = [value for key, value in context.invocation_metadata() if key == "authorization"]
    scheme, _, token = str(values[0]).partition(" ") if len(values) == 1 else ("", "", "")
    if scheme.lower() != "bearer" or len(token) > _MAX_TOKEN_CHARACTERS:
        raise UnauthenticatedError
    return token


def _name(name: str) -> str:
    """A name that logs and PostgreSQL take. Raises: UnauthenticatedError."""
    if not (0 < len(name) <= _MAX_NAME_CHARACTERS and name.isprintable()):
        raise UnauthenticatedError
    return name


def _secret_key(secret: bytes) -> PyJWK:
    encoded = base64.urlsafe_b64encode(secret).decode()
    return PyJWK({"kty": "oct", "k": encoded}, SYMMETRIC)
