"""Issue credentials: keys, published key sets, tokens, certificates."""

from __future__ import annotations

import base64
import datetime as dt
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

ISSUER, AUDIENCE = "https://issuer.example", "tasks"
SECRET_KEY = "a secret that only the service has"  # noqa: S105
SCOPES = ("tasks:read", "tasks:write", "tasks:admin")

Metadata = tuple[tuple[str, str], ...]


@cache
def _private_key(algorithm: str, kid: str, bits: int) -> Any:
    match algorithm:
        case "RS256":
            return rsa.generate_private_key(65537, bits)
        case "ES256":
            return ec.generate_private_key(ec.SECP256R1())
        case _:
            return ed25519.Ed25519PrivateKey.generate()


class SigningKey:
    """A key pair of an issuer, by its algorithm and kid."""

    def __init__(self, algorithm: str, kid: str, bits: int = 2048) -> None:
        self.algorithm = algorithm
        self.kid = kid
        self.private: Any = _private_key(algorithm, kid, bits)

    @property
    def jwk(self) -> dict[str, Any]:
        """The public key as the set has it."""
        kinds: dict[str, Any] = {"RS256": RSAAlgorithm, "ES256": ECAlgorithm}
        kind = kinds.get(self.algorithm, OKPAlgorithm)
        jwk = kind.to_jwk(self.private.public_key(), as_dict=True)
        return {**jwk, "kid": self.kid, "alg": self.algorithm, "use": "sig"}

    def sign(self, claims: dict[str, Any], **header: object) -> str:
        """A token with this key's signature, whatever its header says."""
        headers = {"kid": self.kid, **header}
        return jwt.encode(claims, self.private, self.algorithm, headers)


def key_set(*keys: SigningKey) -> bytes:
    return json.dumps({"keys": [key.jwk for key in keys]}).encode()


def claims(sub: str = "ann", *scopes: str, **others: object) -> dict[str, Any]:
    """The claims of a good token; those that are None are left out."""
    now = int(time.time())
    all_ = {
        "sub": sub,
        "scope": " ".join(scopes or SCOPES),
        "iss": ISSUER,
        "aud": AUDIENCE,
        "iat": now,
        "exp": now + 6 * 3600,  # Some are made when tests are collected.
        **others,
    }
    return {name: value for name, value in all_.items() if value is not None}


def bearer(token: str) -> Metadata:
    return (("authorization", f"Bearer {token}"),)


def encoded(part: object) -> str:
    """A part of a token: JSON, or bytes as they are, in base64url."""
    content = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


class KeyServer:
    """Publish a set of keys over HTTP, and count the requests."""

    def __init__(self) -> None:
        self.status = 200
        self.document = b""
        self.location = ""
        self.endless = ""
        """The part of an answer that does not end, "headers" or "document"."""
        self.paths: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.paths.append(self.path)
                self.send_response(outer.status)
                if outer.location:
                    self.send_header("Location", outer.location)
                while outer.endless == "headers":
                    self._drip(b"X-More: x\r\n")
                self.end_headers()
                while outer.endless == "document":
                    self._drip(b" ")
                self.wfile.write(outer.document)

            def _drip(self, more: bytes) -> None:
                self.flush_headers()
                self.wfile.write(more)
                time.sleep(0.01)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/jwks.json"

    def serve(self) -> None:
        self._server.serve_forever(poll_interval=0.01)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def running_key_server(document: bytes = b"") -> Iterator[KeyServer]:
    server = KeyServer()
    server.document = document
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server
    finally:
        server.close()
        thread.join()


class WithMetadata(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Sends metadata with every call of a channel."""

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(self._with(details), request)

    def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(self._with(details), request)

    def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Any:
        return continuation(self._with(details), requests)

    def _with(self, details: Any) -> Any:
        return details._replace(metadata=(*(details.metadata or ()), *self._metadata))


def authorised(channel: grpc.Channel, token: str) -> grpc.Channel:
    """The channel of a caller with this token."""
    return grpc.intercept_channel(channel, WithMetadata(bearer(token)))


def _usage(*, signs: bool) -> x509.KeyUsage:
    """Return what the key of a certificate is for, which Python 3.13 wants to know (RFC 5280)."""
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


class Certificate:
    """A certificate, its key, and all in PEM; signed by its issuer, or by itself."""

    def __init__(self, common_name: str, *names: x509.GeneralName, issuer: Any = None) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        named = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else []
        self.subject = x509.Name(named)
        now, day = dt.datetime.now(dt.UTC), dt.timedelta(days=1)
        of_issuer = (issuer or self).key.public_key()
        builder = (
            x509.CertificateBuilder()
            .subject_name(self.subject)
            .issuer_name((issuer or self).subject)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - day)
            .not_valid_after(now + day)
            .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), True)
            .add_extension(_usage(signs=issuer is None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(of_issuer), False)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        signed = builder.sign((issuer or self).key, hashes.SHA256())
        self.pem = signed.public_bytes(serialization.Encoding.PEM)
        self.key_pem = self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
