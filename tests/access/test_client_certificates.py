"""Authenticate clients by their certificates, after a real handshake."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from cryptography import x509

from server.access.authentication import CertificateAuthenticator
from server.access.principal import Principal, Scope
from server.errors import UnauthenticatedError
from tests.support.credentials import Certificate

URI, DNS, IP = x509.UniformResourceIdentifier, x509.DNSName, x509.IPAddress
BILLING = "spiffe://example/billing"

WITHOUT: dict[str, frozenset[Scope]] = {
    f"uri:{BILLING}": frozenset({"tasks:write"}),
    "*": frozenset({"tasks:read"}),
}
WITH_COMMON_NAMES: dict[str, frozenset[Scope]] = {**WITHOUT, "cn:old": frozenset({"tasks:read"})}

PrincipalOf = Callable[..., Principal | None]


class _Server(grpc.GenericRpcHandler):
    """Authenticate every call and record its principal."""

    def __init__(self) -> None:
        self.scopes: dict[str, frozenset[Scope]] = {}
        self.principals: list[Principal | None] = []

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            try:
                authenticator = CertificateAuthenticator(self.scopes)
                self.principals.append(authenticator.authenticate(context))
            except UnauthenticatedError:
                self.principals.append(None)
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture(scope="module")
def principal_of() -> Iterator[PrincipalOf]:
    """Return a function that calls with a certificate and returns the principal, or None."""
    authority = Certificate("an authority")
    own = Certificate("localhost", DNS("localhost"), issuer=authority)
    handler = _Server()
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((handler,))
    port = server.add_secure_port(
        "127.0.0.1:0",
        grpc.ssl_server_credentials(
            [(own.key_pem, own.pem)], authority.pem, require_client_auth=True
        ),
    )
    server.start()

    def call(
        common_name: str,
        *names: x509.GeneralName,
        scopes: dict[str, frozenset[Scope]] = WITH_COMMON_NAMES,
    ) -> Principal | None:
        handler.scopes = scopes
        client = Certificate(common_name, *names, issuer=authority)
        credentials = grpc.ssl_channel_credentials(authority.pem, client.key_pem, client.pem)
        options = [("grpc.ssl_target_name_override", "localhost")]
        with grpc.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
            method: Any = channel.unary_unary("/a/Method", None, None)
            method(b"")
        return handler.principals.pop()

    yield call
    server.stop(0).wait()


@pytest.mark.parametrize(
    ("names", "name"),
    [
        ((DNS("a.example"), URI(BILLING), URI("https://b.example")), f"uri:{BILLING}"),
        (
            (IP(ipaddress.ip_address("10.0.0.1")), DNS("a.example"), DNS("b.example")),
            "dns:a.example",
        ),
        ((IP(ipaddress.ip_address("10.0.0.1")),), "cn:common"),
        ((), "cn:common"),
    ],
    ids=["URI", "DNS", "IP alone", "none"],
)
def test_the_principal_is_the_first_uri_else_dns_else_common_name(
    principal_of: PrincipalOf, names: tuple[x509.GeneralName, ...], name: str
) -> None:
    principal = principal_of("common", *names)
    assert principal is not None
    assert principal.name == name


def test_a_listed_name_has_the_scopes_of_the_settings(principal_of: PrincipalOf) -> None:
    assert principal_of("common", URI(BILLING)) == Principal(
        f"uri:{BILLING}", frozenset({"tasks:write"})
    )


def test_an_unlisted_name_has_the_default_scopes(principal_of: PrincipalOf) -> None:
    assert principal_of("unlisted") == Principal("cn:unlisted", frozenset({"tasks:read"}))


@pytest.mark.parametrize(
    ("common_name", "names"),
    [(BILLING, ()), (f"uri:{BILLING}", ()), ("common", (DNS("spiffe.example"),))],
    ids=["common name", "common name with a kind", "DNS"],
)
def test_a_name_of_another_kind_has_not_the_scopes_of_a_uri(
    principal_of: PrincipalOf, common_name: str, names: tuple[x509.GeneralName, ...]
) -> None:
    """The holder of a certificate may have chosen its common name."""
    principal = principal_of(common_name, *names)
    assert principal is not None
    assert principal.scopes == {"tasks:read"}
    assert principal.name != f"uri:{BILLING}"


@pytest.mark.parametrize("names", [(), (IP(ipaddress.ip_address("10.0.0.1")),)])
def test_a_common_name_alone_is_no_principal_unless_configured(
    principal_of: PrincipalOf, names: tuple[x509.GeneralName, ...]
) -> None:
    assert principal_of("common", *names, scopes=WITHOUT) is None
    assert principal_of("common", *names, DNS("a.example"), scopes=WITHOUT) is not None


@pytest.mark.parametrize("name", ["", "a\nb", "a\tb", " ", "ann ", "Anonymous", "a\u200bb"])
def test_a_certificate_without_a_printable_name_is_refused(
    principal_of: PrincipalOf, name: str
) -> None:
    assert principal_of(name) is None
