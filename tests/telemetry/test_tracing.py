"""The helpers that make spans, and the decision which calls have one."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextvars import copy_context
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode, format_span_id, format_trace_id, get_current_span

from server.settings import Settings
from server.telemetry.tracing import (
    Metadata,
    _ChosenIds,
    add_span_attributes,
    add_span_event,
    get_tracer,
    head_sampled,
    resource,
    run_with_timeout,
    sampler,
    set_span_error,
    traced_operation,
)
from storage.errors import ConstraintError

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


class Spans(NamedTuple):
    """What was recorded."""

    exporter: InMemorySpanExporter

    def all(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()

    def one(self) -> ReadableSpan:
        (span,) = self.all()
        return span


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spans]:
    """The spans of the test: OpenTelemetry takes a provider once in the life of a process, so it
    is not given this one."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    yield Spans(exporter)
    provider.shutdown()


# --- Helpers ------------------------------------------------------------------------------------


def test_the_tracer_is_ours(spans: Spans) -> None:
    with get_tracer().start_as_current_span("a"):
        pass
    scope = spans.one().instrumentation_scope
    assert scope is not None
    assert scope.name == "taskservice"


def test_attributes_and_events_belong_to_the_span_under_way(spans: Spans) -> None:
    with traced_operation("outer"), traced_operation("inner"):
        add_span_attributes({"a": 1, "b": "two"})
        add_span_event("happened", {"c": True})
    inner, outer = spans.all()
    assert (inner.name, inner.attributes) == ("inner", {"a": 1, "b": "two"})
    assert [(event.name, event.attributes) for event in inner.events] == [("happened", {"c": True})]
    assert (outer.attributes, outer.events) == ({}, ())


def test_an_operation_is_a_span_below_the_one_under_way(spans: Spans) -> None:
    with traced_operation("outer") as span, traced_operation("inner", {"a": 1}):
        pass
    inner, outer = spans.all()
    assert inner.parent == span.get_span_context()
    assert (inner.attributes, inner.status.status_code) == ({"a": 1}, StatusCode.UNSET)
    assert outer.parent is None


def test_what_an_operation_raises_makes_its_span_an_error_and_goes_on(spans: Spans) -> None:
    """Once: not by us, and by OpenTelemetry again."""
    with pytest.raises(LookupError, match="not here"), traced_operation("search"):
        raise LookupError("not here")
    span = spans.one()
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "LookupError")
    (event,) = span.events
    assert event.name == "exception"
    attributes = event.attributes or {}
    assert attributes["exception.type"] == "LookupError"
    assert "test_tracing.py" in str(attributes["exception.stacktrace"])


def test_the_text_of_an_exception_is_recorded_if_it_is_of_ours(spans: Spans) -> None:
    """Another may quote what a caller wrote; so may the one that it came from."""

    def refuse() -> None:
        try:
            raise ValueError("a caller's words")
        except ValueError as error:
            raise ConstraintError("its name") from error

    with pytest.raises(ConstraintError), traced_operation("write"):
        refuse()
    (event,) = spans.one().events
    attributes = event.attributes or {}
    stack = str(attributes["exception.stacktrace"])
    assert attributes["exception.message"] == "the row breaks its name"
    assert stack.index("ValueError") < stack.index("storage.errors.ConstraintError: the row")
    assert stack.count("in refuse") == 2
    assert '"a caller\'s words"' in stack  # As it stands in the code, and not as it was said.
    assert "ValueError: " not in stack


def test_an_error_that_is_handled_can_be_noted(spans: Spans) -> None:
    with traced_operation("try"):
        set_span_error(ValueError("handled"))
    assert spans.one().status.status_code is StatusCode.ERROR
    assert [event.name for event in spans.one().events] == ["exception"]


def test_helpers_do_nothing_outside_of_spans(spans: Spans) -> None:
    add_span_attributes({"a": 1})
    add_span_event("happened")
    set_span_error(ValueError())
    assert spans.all() == ()


def test_an_action_that_hangs_is_not_waited_for() -> None:
    """The end of this test is what it shows."""
    ends = threading.Event()
    run_with_timeout(0.01, ends.wait)
    assert not ends.is_set()
    ends.set()


def test_an_action_that_does_not_hang_is_waited_for() -> None:
    done = []
    run_with_timeout(60, lambda: done.append(1))
    assert done == [1]


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
        sampler=sampler(settings), id_generator=_ChosenIds(), shutdown_on_exit=False
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


# --- The origin ---------------------------------------------------------------------------------


def test_the_resource_names_the_service_and_this_process() -> None:
    attributes = resource(Settings(app_name="tasks", version="1.2.3")).attributes
    assert attributes["service.name"] == "tasks"
    assert attributes["service.version"] == "1.2.3"
    assert attributes["deployment.environment.name"] == "development"
    assert str(attributes["service.instance.id"]).endswith(f":{os.getpid()}")


def test_the_name_in_telemetry_may_be_another_one() -> None:
    settings = Settings(app_name="tasks", otel_service_name="tasks-blue")
    assert resource(settings).attributes["service.name"] == "tasks-blue"


def test_the_standard_variable_adds_to_the_resource_and_goes_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "k8s.pod.name=p-1,service.instance.id=i-1")
    attributes = resource(Settings()).attributes
    assert attributes["k8s.pod.name"] == "p-1"
    assert attributes["service.instance.id"] == "i-1"
    assert attributes["service.name"] == "task-service"
