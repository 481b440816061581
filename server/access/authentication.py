"""Authenticate the caller by its token or its certificate; with AUTH_MODE=none everybody may call.

Every credential that is not good is refused with the same words: the reason would help only a
client that guesses. The log has the reason at level DEBUG, without the credential.
"""

from __future__ import annotations

import base64
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any

import grpc
import jwt
import structlog
from jwt import PyJWK

from server.access.authorization import ALL_SCOPES
from server.access.jwks import Keys, KeySet
from server.errors import KeysUnavailableError, UnauthenticatedError
from server.principal import ANONYMOUS, Principal, Scope, name_problem
from server.settings import MAX_TOKEN_MINUTES, SYMMETRIC, Settings

log = structlog.get_logger()

_LEEWAY_SECONDS = 30
_MAX_TOKEN_CHARACTERS = 8 * 1024
# Valid tokens only, so that invalid ones cannot fill the cache: a few MiB.
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
        """Raises: KeysUnavailableError, while there are no keys to verify with."""


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

    The kind of a name is part of it: the first URI ("uri:spiffe://example/billing"), else the first
    DNS name ("dns:billing.example"), else the common name ("cn:billing"). The last only where
    MTLS_SCOPES has such a name: the holder of a certificate may have chosen its common name, and
    RFC 9525 forbids to rely on it. "*" in MTLS_SCOPES is for all names that it does not have.
    """

    def __init__(self, scopes: Mapping[str, frozenset[Scope]]) -> None:
        self._scopes = scopes
        self._kinds = {"uri": "peer_uri", "dns": "peer_dns"}
        if any(name.startswith("cn:") for name in scopes):
            self._kinds["cn"] = "x509_common_name"

    def authenticate(self, context: grpc.ServicerContext) -> Principal:
        try:
            name = self._name(context.auth_context())
        except UnauthenticatedError as error:
            log.debug("certificate refused", why=str(error))
            raise
        return Principal(name, self._scopes.get(name, self._scopes.get("*", frozenset())))

    def _name(self, properties: Mapping[str, Any]) -> str:
        for kind, source in self._kinds.items():
            for value in properties.get(source, ()):
                return f"{kind}:{_checked(value.decode('utf-8', 'surrogateescape'))}"
        raise UnauthenticatedError("there is no name of a kind that is taken")


class TokenAuthenticator(Authenticator):
    """Verifies bearer tokens: signed JWTs (RFC 7519), by the rules of RFC 8725.

    A key is looked up by the algorithm and the kid in the token's header, and each key is good for
    one algorithm: no token makes a secret of a public key. Whatever else the header says of keys
    (`jku`, `x5u`, `jwk`) is not looked at.
    """

    def __init__(self, settings: Settings) -> None:
        self._issuer = settings.jwt_issuer
        self._audience = settings.jwt_audience
        self._secrets: Sequence[PyJWK] = ()
        if SYMMETRIC in settings.algorithms:
            self._secrets = [_secret_key(key) for key in settings.accepted_keys()]
        public = settings.algorithms - {SYMMETRIC}
        self._key_set: KeySet | None = None
        if source := settings.jwks_source:
            self._key_set = KeySet(source, public, self._use)
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
        principal = self._verified(_bearer_token(context))
        if time.time() >= principal.expires:
            raise UnauthenticatedError
        return principal

    def _use(self, public: Keys | None) -> None:
        """Verifies with these public keys from now on; None for those that are awaited.

        What is good is remembered, by the keys that it was verified with: with others it is not.
        """
        self._public = public
        self._verified = lru_cache(_REMEMBERED)(partial(self._verify, public))

    def _verify(self, public: Keys | None, token: str) -> Principal:
        try:
            header = jwt.get_unverified_header(token)
            name = header["alg"], header.get("kid")
            keys = self._secrets if name == (SYMMETRIC, None) else [(public or {})[name]]
            return _principal(self._claims(token, keys))
        except Exception as error:  # A parser that stumbles over a token has refused it.
            if public is None:
                raise KeysUnavailableError from None  # It may be good by the keys to come.
            is_ours = isinstance(error, UnauthenticatedError)  # Others may quote the token.
            log.debug("token refused", why=str(error) if is_ours else type(error).__name__)
            raise UnauthenticatedError from None

    def _claims(self, token: str, keys: Sequence[PyJWK]) -> dict[str, Any]:
        """What the token says, by the first of the keys that it is signed with."""
        *others, last = keys
        for key in others:
            with suppress(jwt.InvalidSignatureError):
                return self._claims_by(token, key)
        return self._claims_by(token, last)

    def _claims_by(self, token: str, key: PyJWK) -> dict[str, Any]:
        return jwt.decode(
            token,
            key,
            algorithms=[key.algorithm_name],
            issuer=self._issuer,
            audience=self._audience,
            leeway=_LEEWAY_SECONDS,
            options={"require": ["exp", "iat", "sub"]},
        )


def _principal(claims: dict[str, Any]) -> Principal:
    """Whom the claims name. Raises: UnauthenticatedError, when a token lives for too long."""
    expires = int(claims["exp"])
    if expires - int(claims["iat"]) > MAX_TOKEN_MINUTES * 60:
        raise UnauthenticatedError(f"the token lives longer than {MAX_TOKEN_MINUTES} minutes")
    scopes = ALL_SCOPES & (_listed(claims.get("scope")) | _listed(claims.get("scp")))
    return Principal(_checked(claims["sub"]), scopes, expires + _LEEWAY_SECONDS)


def _listed(scope: object) -> set[str]:
    """The scopes of a claim: words with spaces between (`scope` in RFC 8693), or a list of them
    (`scp` of some issuers). Those that are not ours are ignored. Raises: UnauthenticatedError."""
    match scope:
        case None:
            return set()
        case str():
            return set(scope.split())
        case list():
            return set(scope)
    raise UnauthenticatedError("the scopes are neither text nor a list")


def _bearer_token(context: grpc.ServicerContext) -> str:
    """The token of `authorization: Bearer …` (RFC 6750). Raises: UnauthenticatedError."""
    values = [value for key, value in context.invocation_metadata() if key == "authorization"]
    scheme, _, token = str(values[0]).partition(" ") if len(values) == 1 else ("", "", "")
    if scheme.lower() != "bearer" or len(token) > _MAX_TOKEN_CHARACTERS:
        raise UnauthenticatedError
    return token


def _checked(name: str) -> str:
    """The name, if a principal may have it. Raises: UnauthenticatedError."""
    if problem := name_problem(name):
        raise UnauthenticatedError(problem)
    return name


def _secret_key(secret: bytes) -> PyJWK:
    encoded = base64.urlsafe_b64encode(secret).decode()
    return PyJWK({"kty": "oct", "k": encoded}, SYMMETRIC)
