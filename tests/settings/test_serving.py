"""Settings of ports, TLS, reflection, telemetry and limits."""

from __future__ import annotations

import pytest

from tests.support.settings import NO_PLAINTEXT, SAFE, SECRET, Load, mistakes


@pytest.mark.parametrize("setting", ["HEALTH_PORT", "METRICS_PORT"])
def test_other_ports_are_off_unless_they_are_named(load: Load, setting: str) -> None:
    assert getattr(load(), setting.lower()) is None
    assert getattr(load(**{setting: "0"}), setting.lower()) == 0
    assert mistakes(load, **{setting: "65536"}) == [
        f"{setting}: Input should be less than or equal to 65535"
    ]


@pytest.mark.parametrize(
    ("settings", "host"),
    [
        ({}, "127.0.0.1"),
        ({"GRPC_HOST": "10.0.0.1"}, "127.0.0.1"),
        ({"GRPC_HOST": "10.0.0.1", "METRICS_HOST": "::"}, "::"),
        (SAFE | {"GRPC_HOST": "10.0.0.1"}, "10.0.0.1"),
        (SAFE | {"GRPC_HOST": "10.0.0.1", "METRICS_HOST": "10.0.0.7"}, "10.0.0.7"),
    ],
)
def test_metrics_have_a_host_of_their_own(load: Load, settings: dict[str, str], host: str) -> None:
    """They need no credentials: in development other machines cannot read them by default."""
    assert load(**settings).metrics_on == host


@pytest.mark.parametrize("endpoint", ["https://[::1]:4317", "http://collector.example:4317/"])
def test_a_collector_is_named_by_host_and_port(load: Load, endpoint: str) -> None:
    assert load(OTEL_EXPORTER_ENDPOINT=endpoint).otel_exporter_endpoint == endpoint


@pytest.mark.parametrize(
    "endpoint",
    [
        "localhost:4317",
        "grpc://localhost:4317",
        "http://localhost",
        "http://localhost:4317/v1/traces",
        f"http://user:{SECRET}@localhost:4317",
    ],
)
def test_a_malformed_collector_is_refused_and_not_shown(load: Load, endpoint: str) -> None:
    assert mistakes(load, OTEL_EXPORTER_ENDPOINT=endpoint) == [
        "OTEL_EXPORTER_ENDPOINT: must be a URL such as http://localhost:4317 or https://host:4317"
    ]


def test_production_is_not_in_plaintext_by_accident(load: Load) -> None:
    assert mistakes(load, **SAFE | {"TLS_TERMINATED_UPSTREAM": "false"}) == [
        f"TLS_CERT_FILE: {NO_PLAINTEXT}"
    ]


@pytest.mark.parametrize(
    "settings",
    [{"TLS_TERMINATED_UPSTREAM": "true"}, {"TLS_CERT_FILE": "c.pem", "TLS_KEY_FILE": "k.pem"}],
)
def test_production_accepts_certificates_or_a_proxy(load: Load, settings: dict[str, str]) -> None:
    load(**SAFE | {"TLS_TERMINATED_UPSTREAM": "false"} | settings)


@pytest.mark.parametrize("environment", ["development", "staging"])
def test_plaintext_is_for_tests(load: Load, environment: str) -> None:
    load(**SAFE | {"TLS_TERMINATED_UPSTREAM": "false", "ENVIRONMENT": environment})


@pytest.mark.parametrize(
    ("settings", "mistake"),
    [
        ({"TLS_CERT_FILE": "c.pem"}, "TLS_KEY_FILE: must be set together with TLS_CERT_FILE"),
        ({"TLS_KEY_FILE": "k.pem"}, "TLS_KEY_FILE: must be set together with TLS_CERT_FILE"),
        ({"TLS_CLIENT_CA_FILE": "ca.pem"}, "TLS_CLIENT_CA_FILE: needs TLS_CERT_FILE"),
    ],
)
def test_incomplete_tls_settings_are_refused(
    load: Load, settings: dict[str, str], mistake: str
) -> None:
    """Otherwise a service could serve plaintext by mistake."""
    assert mistakes(load, **settings) == [mistake]


@pytest.mark.parametrize(
    ("environment", "given", "meant"),
    [
        ("development", {}, "on"),
        ("staging", {}, "authenticated"),
        ("production", {}, "authenticated"),
        ("production", {"REFLECTION": "on"}, "on"),
        ("development", {"REFLECTION": "off"}, "off"),
    ],
)
def test_reflection_is_open_in_development_only(
    load: Load, environment: str, given: dict[str, str], meant: str
) -> None:
    loaded = load(**SAFE | {"ENVIRONMENT": environment} | given)
    assert loaded.reflection_for == meant


def test_calls_in_flight_follow_from_threads(load: Load) -> None:
    assert load(THREADS_PER_WORKER="8").call_limit == 128
    assert load(MAX_CONCURRENT_CALLS="9").call_limit == 9


def test_every_thread_has_a_connection_of_the_pool(load: Load) -> None:
    """As many as threads that run calls, and those of the service itself."""
    assert load(THREADS_PER_WORKER="64").pool_size == 73


def test_a_principal_has_a_rate_but_in_development(load: Load) -> None:
    assert load(AUTH_MODE="jwt").calls_per_second is None
    assert load(**SAFE | {"AUTH_MODE": "jwt"}).calls_per_second == 500
    assert load(RATE_LIMIT_PER_SECOND="7").calls_per_second == 7


def test_clients_without_authentication_share_no_limit(load: Load) -> None:
    """With AUTH_MODE=none they are one principal."""
    assert load(**SAFE).calls_per_second is None
    assert load(**SAFE, RATE_LIMIT_PER_SECOND="7").calls_per_second == 7
