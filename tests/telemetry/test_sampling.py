"""OpenTelemetry's standard variables of sampling, and the decision about a call."""

from __future__ import annotations

from contextvars import copy_context

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import format_span_id, format_trace_id, get_current_span

from server.settings import Settings
from server.telemetry.sampling import ChosenIds, Metadata, head_sampled, ignored_values, sampler
from tests.support.settings import SAFE

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"


def sampler_of(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> str:
    """Describe the sampler of these variables."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return sampler(Settings.load()).get_description()


def by_ratio(ratio: float) -> str:
    """Describe the default sampler."""
    sampler: Sampler = ParentBased(TraceIdRatioBased(float(ratio)))
    return sampler.get_description()


@pytest.mark.parametrize(
    ("environment", "ratio"),
    [
        ({}, 1),
        (SAFE, 0.1),
        (SAFE | {"OTEL_TRACES_SAMPLER_ARG": "0"}, 0),
        ({"OTEL_TRACES_SAMPLER_ARG": "0.25"}, 0.25),
    ],
)
def test_development_samples_every_trace_and_production_one_in_ten(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], ratio: float
) -> None:
    assert sampler_of(monkeypatch, environment) == by_ratio(ratio)


@pytest.mark.parametrize("name", ["parentbased_jaeger_remote", "jaeger_remote", "xray", "x"])
def test_an_unsupported_sampler_is_ignored(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The specification requires the default."""
    assert sampler_of(monkeypatch, {"OTEL_TRACES_SAMPLER": name}) == by_ratio(1.0)
    assert list(ignored_values(Settings.load())) == [
        f"OTEL_TRACES_SAMPLER: {name!r} is not supported, parentbased_traceidratio is used"
    ]


@pytest.mark.parametrize("value", ["1.1", "-0.1", "nan", "endpoint=http://a:1,pollingIntervalMs=1"])
def test_a_value_that_is_no_ratio_is_ignored(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    assert sampler_of(monkeypatch, {"OTEL_TRACES_SAMPLER_ARG": value}) == by_ratio(1.0)
    (line,) = ignored_values(Settings.load())
    assert line == "OTEL_TRACES_SAMPLER_ARG: it is not a ratio between 0 and 1, the default is used"


def test_the_name_of_a_sampler_has_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sampler_of(monkeypatch, {"OTEL_TRACES_SAMPLER": "Always_On"}) == "AlwaysOnSampler"
    assert not list(ignored_values(Settings.load()))


@pytest.mark.parametrize("value", ["thrift", "http/json", "http/protobuf"])
def test_an_unsupported_protocol_is_reported(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(PROTOCOL, value)
    assert list(ignored_values(Settings.load())) == [
        f"OTLP: the protocol {value!r} is not supported, grpc is used"
    ]


# --- The decision -------------------------------------------------------------------------------


def decided(settings: Settings, metadata: Metadata) -> tuple[bool, trace.SpanContext]:
    """Whether a call with this metadata is sampled, and the context that it goes on in."""

    def decide() -> tuple[bool, trace.SpanContext]:
        sampled = head_sampled(sampler(settings), "a/Method", metadata)
        return sampled, get_current_span().get_span_context()

    return copy_context().run(decide)


def is_sampled(settings: Settings, flags: str | None) -> bool:
    """Return whether a call with this traceparent is sampled."""
    return decided(settings, [("traceparent", f"00-{TRACE}-{PARENT}-{flags}")] if flags else [])[0]


ALWAYS, NEVER = (True, True, True), (False, False, False)
AS_THE_CALLER_ELSE_YES, AS_THE_CALLER_ELSE_NO = (True, False, True), (True, False, False)


@pytest.mark.parametrize(
    ("name", "ratio", "expected"),
    [
        ("always_on", "0", ALWAYS),
        ("always_off", "1", NEVER),
        ("traceidratio", "1", ALWAYS),
        ("traceidratio", "0", NEVER),
        ("parentbased_always_on", "0", AS_THE_CALLER_ELSE_YES),
        ("parentbased_always_off", "1", AS_THE_CALLER_ELSE_NO),
        ("parentbased_traceidratio", "1", AS_THE_CALLER_ELSE_YES),
        ("parentbased_traceidratio", "0", AS_THE_CALLER_ELSE_NO),
    ],
)
def test_samplers_mean_what_opentelemetry_says(
    monkeypatch: pytest.MonkeyPatch, name: str, ratio: str, expected: tuple[bool, bool, bool]
) -> None:
    """Of a client that samples its call, of one that does not, and of one without a traceparent."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", name)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", ratio)
    settings = Settings.load()
    assert tuple(is_sampled(settings, flags) for flags in ("01", "00", None)) == expected


def test_nothing_is_sampled_when_traces_are_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_on")
    assert not is_sampled(Settings(otel_enabled=False), "01")


def test_no_value_is_reported_when_traces_are_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "xray")
    assert not list(ignored_values(Settings(otel_enabled=False)))


@given(st.integers(min_value=1, max_value=2**128 - 1), st.floats(0, 1))
def test_all_services_decide_alike_about_a_trace(trace_id: int, ratio: float) -> None:
    """By the lower half of its id, as OpenTelemetry's other implementations do."""
    metadata = [("traceparent", f"00-{trace_id:032x}-{PARENT}-00")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_TRACES_SAMPLER", "traceidratio")
        patch.setenv("OTEL_TRACES_SAMPLER_ARG", str(ratio))
        sampled, _ = decided(Settings(), metadata)
    assert sampled == (trace_id % 2**64 < round(ratio * 2**64))


def test_the_span_of_a_call_is_in_the_trace_that_was_decided_about(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In another, it would be decided about again: of one in ten, one in a hundred was left."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.5")
    settings = Settings()
    provider = TracerProvider(
        sampler=sampler(settings), id_generator=ChosenIds(), shutdown_on_exit=False
    )

    def is_recorded_if_sampled() -> bool:
        if not head_sampled(sampler(settings), "a/Method", []):
            return True
        with provider.get_tracer("").start_as_current_span("a/Method") as span:
            return span.is_recording()

    assert all(copy_context().run(is_recorded_if_sampled) for _ in range(100))


def test_a_call_that_is_not_sampled_goes_on_in_the_trace_of_its_caller() -> None:
    metadata = [("traceparent", f"00-{TRACE}-{PARENT}-00"), ("tracestate", "vendor=1")]
    sampled, context = decided(Settings(), metadata)
    assert not sampled
    assert format_trace_id(context.trace_id) == TRACE
    assert format_span_id(context.span_id) not in {PARENT, "0" * 16}
    assert context.trace_state.get("vendor") == "1"
    assert not context.trace_flags.sampled


def test_a_call_that_is_not_sampled_has_a_trace_though_its_caller_has_none() -> None:
    settings = Settings(otel_enabled=False)
    traces = {decided(settings, [])[1].trace_id for _ in range(10)}
    assert len(traces) == 10
    assert 0 not in traces
