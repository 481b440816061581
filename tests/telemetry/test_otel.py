"""OpenTelemetry's standard variables: what they say, and what is ignored of them."""

from __future__ import annotations

import pytest

from server.settings import Settings
from server.telemetry import otel

PRODUCTION = {
    "ENVIRONMENT": "production",
    "DATABASE_URL": "postgresql://db.example/tasks",
    "SECRET_KEY": "correct-horse-battery-staple-2026",
    "AUTH_MODE": "none",
    "TLS_TERMINATED_UPSTREAM": "true",
}
OURS, STANDARD = "OTEL_EXPORTER_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"


def loaded(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> Settings:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return Settings.load()


@pytest.mark.parametrize(
    ("environment", "endpoint"),
    [
        pytest.param({}, None, id="development: nowhere"),
        pytest.param(PRODUCTION | {"ENVIRONMENT": "staging"}, None, id="staging: nowhere"),
        pytest.param(PRODUCTION, "http://localhost:4317", id="production: localhost"),
        pytest.param({OURS: "http://a:1"}, "http://a:1", id="ours"),
        pytest.param({STANDARD: "http://b:1"}, "http://b:1", id="standard"),
        pytest.param(
            {STANDARD: "http://b:1", TRACES_ENDPOINT: "http://c:1"}, "http://c:1", id="for traces"
        ),
        pytest.param(
            {OURS: "http://a:1", STANDARD: "http://b:1", TRACES_ENDPOINT: "http://c:1"},
            "http://a:1",
            id="ours precedes",
        ),
        pytest.param({OURS: "http://a:1", "OTEL_ENABLED": "false"}, None, id="switched off"),
    ],
)
def test_spans_are_exported_to_the_endpoint_of_the_variables(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], endpoint: str | None
) -> None:
    assert otel.traces_endpoint(loaded(monkeypatch, environment)) == endpoint


@pytest.mark.parametrize(
    ("environment", "ratio"),
    [
        ({}, 1),
        (PRODUCTION, 0.1),
        (PRODUCTION | {"OTEL_TRACES_SAMPLER_ARG": "0"}, 0),
        ({"OTEL_TRACES_SAMPLER_ARG": "0.25"}, 0.25),
    ],
)
def test_every_trace_is_taken_in_development_and_one_in_ten_elsewhere(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], ratio: float
) -> None:
    assert otel.sampling_ratio(loaded(monkeypatch, environment)) == ratio


@pytest.mark.parametrize("name", ["parentbased_jaeger_remote", "jaeger_remote", "xray", "x"])
def test_a_sampler_that_there_is_not_is_ignored(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As if it were not set, says the specification."""
    settings = loaded(monkeypatch, {"OTEL_TRACES_SAMPLER": name})
    assert otel.sampler_name() == "parentbased_traceidratio"
    assert list(otel.ignored(settings)) == [
        f"OTEL_TRACES_SAMPLER: {name!r} is not supported, parentbased_traceidratio is used"
    ]


@pytest.mark.parametrize("value", ["1.1", "-0.1", "nan", "endpoint=http://a:1,pollingIntervalMs=1"])
def test_an_argument_that_is_no_ratio_is_ignored(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    settings = loaded(monkeypatch, {"OTEL_TRACES_SAMPLER_ARG": value})
    assert otel.sampling_ratio(settings) == 1
    (line,) = otel.ignored(settings)
    assert line == "OTEL_TRACES_SAMPLER_ARG: it is not a ratio between 0 and 1, 1 is used"


def test_a_sampler_is_known_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = loaded(monkeypatch, {"OTEL_TRACES_SAMPLER": "Always_On"})
    assert otel.sampler_name() == "always_on"
    assert not list(otel.ignored(settings))


@pytest.mark.parametrize("value", ["thrift", "http/json", "http/protobuf"])
def test_an_unsupported_protocol_is_warned_of(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    settings = loaded(monkeypatch, {PROTOCOL: value})
    assert list(otel.ignored(settings)) == [
        f"OTLP: the protocol {value!r} is not supported, grpc is used"
    ]
