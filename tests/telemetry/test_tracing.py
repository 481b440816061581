"""The helpers that make spans, and where spans go."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode, get_current_span

from server.settings import Settings
from server.telemetry.tracing import (
    add_span_event,
    resource,
    run_with_timeout,
    set_span_error,
    traced_operation,
    traces_endpoint,
)
from storage.errors import ConstraintError
from tests.support.settings import SAFE

OURS, STANDARD = "OTEL_EXPORTER_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"


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


def test_attributes_and_events_belong_to_the_span_under_way(spans: Spans) -> None:
    with traced_operation("outer"), traced_operation("inner"):
        get_current_span().set_attribute("a", 1)
        add_span_event("happened", {"c": True})
    inner, outer = spans.all()
    assert (inner.name, inner.attributes) == ("inner", {"a": 1})
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


# --- Where spans go, and their origin -----------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "endpoint"),
    [
        pytest.param({}, None, id="development: nowhere"),
        pytest.param(SAFE | {"ENVIRONMENT": "staging"}, None, id="staging: nowhere"),
        pytest.param(SAFE, "http://localhost:4317", id="production: localhost"),
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
    ],
)
def test_spans_are_exported_to_the_endpoint_of_the_variables(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], endpoint: str | None
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert traces_endpoint(Settings.load()) == endpoint


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
