"""Settings of authentication."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.settings import SAFE, SECRET, Load, mistakes


@pytest.mark.parametrize("environment", ["staging", "production"])
def test_staging_and_production_need_an_auth_mode(load: Load, environment: str) -> None:
    """Access without authentication must be explicit."""
    assert mistakes(load, **SAFE | {"ENVIRONMENT": environment, "AUTH_MODE": ""}) == [
        f"AUTH_MODE: must be set in {environment}, even if to none"
    ]


def test_development_needs_no_authentication(load: Load) -> None:
    assert load().auth_mode == "none"


def test_certificates_authenticate_only_if_verified(load: Load) -> None:
    assert mistakes(load, AUTH_MODE="mtls") == ["AUTH_MODE: mtls needs TLS_CLIENT_CA_FILE"]


@pytest.mark.parametrize(
    "names", ["none", "HS256,none", "HS512", "hs256", "RS256 ES256", ",", "HS256,"]
)
def test_an_unsupported_algorithm_is_refused(load: Load, names: str) -> None:
    assert mistakes(load, ALGORITHM=names) == [
        "ALGORITHM: must be some of ES256, Ed25519, EdDSA, HS256, RS256"
    ]


NAMED = {"JWT_ISSUER": "https://issuer.example", "JWT_AUDIENCE": "tasks"}
JWKS_URL = "https://issuer.example/jwks.json"


def test_algorithms_stand_with_commas_between(load: Load) -> None:
    settings = load(AUTH_MODE="jwt", ALGORITHM="HS256, EdDSA", JWKS_URL=JWKS_URL, **NAMED)
    assert settings.algorithms == {"HS256", "EdDSA"}


@pytest.mark.parametrize(
    "settings", [{"ALGORITHM": "RS256"}, {"JWKS_URL": JWKS_URL, **NAMED}], ids=["no keys", "no use"]
)
def test_public_keys_and_their_algorithms_need_each_other(
    load: Load, settings: dict[str, str]
) -> None:
    """With a JWKS and the default ALGORITHM, only tokens of SECRET_KEY would be accepted."""
    assert mistakes(load, AUTH_MODE="jwt", **settings) == [
        "JWKS_URL: must be set with RS256, ES256 and EdDSA, and only with them"
    ]


@pytest.mark.parametrize("missing", NAMED)
def test_with_a_jwks_the_issuer_and_the_audience_are_named(load: Load, missing: str) -> None:
    """An identity provider signs tokens for many services with the same keys."""
    settings = {"AUTH_MODE": "jwt", "ALGORITHM": "RS256", "JWKS_URL": JWKS_URL, **NAMED}
    assert mistakes(load, **settings | {missing: ""}) == [
        f"{missing}: must be set with a JWKS: its issuer signs tokens for others too"
    ]


def test_a_jwks_may_be_a_file(load: Load, tmp_path: Path) -> None:
    path = tmp_path / "a set.json"
    path.touch()
    assert load(JWKS_URL=path.as_uri(), **NAMED).jwks_source == path


def test_the_file_of_a_jwks_exists(load: Load, tmp_path: Path) -> None:
    assert mistakes(load, JWKS_URL=(tmp_path / "none").as_uri(), **NAMED) == [
        "JWKS_URL: does not name a file"
    ]


@pytest.mark.parametrize(
    "url", ["file:keys", "file://host/keys", "issuer", "https://me:secret@host/", "https:"]
)
def test_a_malformed_jwks_url_is_refused(load: Load, url: str) -> None:
    assert mistakes(load, JWKS_URL=url, **NAMED) == [
        "JWKS_URL: must be a URL such as https://host/jwks.json or file:///jwks.json"
    ]


def test_in_production_keys_come_over_tls(load: Load) -> None:
    url = {"JWKS_URL": JWKS_URL.replace("https", "http"), **NAMED}
    assert load(**url)
    assert mistakes(load, **SAFE | url) == [
        "JWKS_URL: must not be http in production: the keys could be replaced"
    ]


def test_tokens_are_not_signed_with_a_short_secret(load: Load) -> None:
    """RFC 7518, 3.2: a key as long as the hash, at least."""
    assert mistakes(load, AUTH_MODE="jwt", SECRET_KEY=SECRET[:31]) == [
        "SECRET_KEY: must have 32 characters or more with AUTH_MODE=jwt"
    ]


def test_what_certificates_may_do_is_json(load: Load) -> None:
    settings = load(MTLS_SCOPES='{"uri:spiffe://x/bill": ["tasks:read", "tasks:write"], "*": []}')
    assert settings.mtls_scopes == {
        "uri:spiffe://x/bill": {"tasks:read", "tasks:write"},
        "*": frozenset(),
    }


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        (
            "spiffe://x/billing",
            '"spiffe://x/billing" has no kind; write "uri:spiffe://x/billing"',
        ),
        (
            "billing.example",
            '"billing.example" has no kind; write "dns:billing.example" or "cn:billing.example"',
        ),
        ("cn:", "no certificate is accepted by the name 'cn:': the name is blank"),
        (
            "dns: a.example",
            "no certificate is accepted by the name 'dns: a.example': "
            "the name begins or ends with white space",
        ),
    ],
)
def test_a_name_of_certificates_has_its_kind(load: Load, name: str, mistake: str) -> None:
    """Without it, a common name could be taken for a URI."""
    assert mistakes(load, MTLS_SCOPES=json.dumps({name: ["tasks:read"], "*": []})) == [
        f"MTLS_SCOPES: {mistake}"
    ]


@pytest.mark.parametrize("scopes", ["billing", '{"cn:x": ["x:read"]}', '{"cn:x": "tasks:read"}'])
def test_unknown_scopes_are_refused(load: Load, scopes: str) -> None:
    assert [line.partition(":")[0] for line in mistakes(load, MTLS_SCOPES=scopes)] == [
        "MTLS_SCOPES"
    ]
