"""Authenticate clients by token or certificate.

One message for all failures, so that attackers learn nothing. The log has the reason at level
DEBUG, without the credential.
"""

import base64
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import grpc
import jwt
import structlog
from jwt import PyJWK

from server.access.authorization import ALL_SCOPES
from server.access.jwks import Keys, KeySet
from server.access.principal import ANONYMOUS, Principal, Scope, name_problem
from server.access.tokens import MAX_TOKEN_MINUTES, SYMMETRIC
from server.errors import KeysUnavailableError, UnauthenticatedError

log = structlog.get_logger()

_LEEWAY_SECONDS = 30
_MAX_TOKEN_CHARACTERS = 8 * 1024
# Valid tokens only, so that invalid ones cannot fill the cache: a few MiB.
_REMEMBERED = 4096


class Authenticator(ABC):
    """Authenticate calls, by keys that are refreshed if there is a set of them."""

    _key_set: KeySet | None = None

    @abstractmethod
    def authenticate(self, context: grpc.ServicerContext) -> Principal:
        """Return the principal. Raises: UnauthenticatedError, KeysUnavailableError."""

    def start(self) -> None:
        if self._key_set:
            self._key_set.start()

    def stop(self) -> None:
        if self._key_set:
            self._key_set.stop()

    def check(self) -> None:  # noqa: B027
        """Raises: KeysUnavailableError, until there are keys to verify with."""


class OpenAuthenticator(Authenticator):
    """Give all scopes to every client."""

    _anonymous = Principal(ANONYMOUS.name, ALL_SCOPES)

    def authenticate(self, context: grpc.ServicerContext) -> Principal:
        return self._anonymous


class CertificateAuthenticator(Authenticator):
    """Take the principal from the client's certificate, which the handshake has verified.

    Its name has a kind: the first URI ("uri:spiffe://example/billing"), else the first DNS name
    ("dns:billing.example"), else the common name ("cn:billing"). A common name is used only if
    MTLS_SCOPES has one: RFC 9525 deprecates them. "*" in MTLS_SCOPES is for all other names.
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
        raise UnauthenticatedError("the certificate has no name of an accepted kind")


class TokenAuthenticator(Authenticator):
    """Verify bearer tokens: signed JWTs (RFC 7519), by the rules of RFC 8725 (decision 12).

    A key is found by the algorithm and the kid in the token's header; other headers are ignored.
    """

    def __init__(
        self,
        secrets: Sequence[bytes],
        *,
        issuer: str | None,
        audience: str | None,
        algorithms: Set[str] = frozenset(),
        key_source: Path | str | None = None,
    ) -> None:
        """Accept tokens of the secrets, and of the public keys at `key_source` for `algorithms`."""
        self._issuer = issuer
        self._audience = audience
        self._secrets = [_secret_key(secret) for secret in secrets]
        self._key_set = KeySet(key_source, algorithms, self._use) if key_source else None
        self._use(None if algorithms else {})

    def check(self) -> None:
        if self._public is None:
            raise KeysUnavailableError

    def authenticate(self, context: grpc.ServicerContext) -> Principal:
        principal = self._verified(_bearer_token(context))
        if time.time() >= principal.expires:
            raise UnauthenticatedError
        return principal

    def _use(self, public: Keys | None) -> None:
        """Verify with these public keys from now on, and forget the cached tokens of others."""
        self._public = public
        self._verified = lru_cache(_REMEMBERED)(partial(self._verify, public))

    def _verify(self, public: Keys | None, token: str) -> Principal:
        try:
            header = jwt.get_unverified_header(token)
            name = header["alg"], header.get("kid")
            keys = self._secrets if name == (SYMMETRIC, None) else [(public or {})[name]]
            return _principal(self._claims(token, keys))
        except Exception as error:  # Parsers raise many kinds.
            if public is None:
                raise KeysUnavailableError from None  # The missing keys may verify it.
            is_ours = isinstance(error, UnauthenticatedError)  # Others may quote the token.
            log.debug("token refused", why=str(error) if is_ours else type(error).__name__)
            raise UnauthenticatedError from None

    def _claims(self, token: str, keys: Sequence[PyJWK]) -> dict[str, Any]:
        """Return the claims, verified with the first key that fits."""
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
    """Convert claims. Raises: UnauthenticatedError, if the token's lifetime is too long."""
    expires = int(claims["exp"])
    if expires - int(claims["iat"]) > MAX_TOKEN_MINUTES * 60:
        raise UnauthenticatedError(f"the token lives longer than {MAX_TOKEN_MINUTES} minutes")
    scopes = ALL_SCOPES & (_listed(claims.get("scope")) | _listed(claims.get("scp")))
    return Principal(_checked(claims["sub"]), scopes, expires + _LEEWAY_SECONDS)


def _listed(scope: object) -> set[str]:
    """Parse a claim: words (`scope`, RFC 8693) or a list (`scp`). Raises: UnauthenticatedError."""
    match scope:
        case None:
            return set()
        case str():
            return set(scope.split())
        case list():
            return set(scope)
    raise UnauthenticatedError("the scopes are neither text nor a list")


def _bearer_token(context: grpc.ServicerContext) -> str:
    """Return the token of `authorization: Bearer …` (RFC 6750). Raises: UnauthenticatedError."""
    values = [value for key, value in context.invocation_metadata() if key == "authorization"]
    scheme, _, token = str(values[0]).partition(" ") if len(values) == 1 else ("", "", "")
    if scheme.lower() != "bearer" or len(token) > _MAX_TOKEN_CHARACTERS:
        raise UnauthenticatedError
    return token


def _checked(name: str) -> str:
    """Return the name if it is valid for a principal. Raises: UnauthenticatedError."""
    if problem := name_problem(name):
        raise UnauthenticatedError(problem)
    return name


def _secret_key(secret: bytes) -> PyJWK:
    return PyJWK({"kty": "oct", "k": base64.urlsafe_b64encode(secret).decode()}, SYMMETRIC)
