"""The trace that a call belongs to: that of its client, where it sends one (W3C Trace Context)."""

from __future__ import annotations

from contextvars import copy_context

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from server.access import principal as caller
from server.access.principal import ANONYMOUS
from server.telemetry.sampling import head_sampled
from storage.repository import Origin

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
VALID = f"00-{TRACE}-{PARENT}-01"


def origin(*metadata: tuple[str, str | bytes]) -> Origin:
    """What is noted of a call with this metadata."""

    def call() -> Origin:
        head_sampled(ALWAYS_OFF, "a/Method", metadata)
        return caller.origin(ANONYMOUS)

    return copy_context().run(call)


@pytest.mark.parametrize(
    "traceparent",
    [
        VALID,
        f"00-{TRACE}-{PARENT}-00",
        pytest.param(f"cc-{TRACE}-{PARENT}-01-what-will-be", id="a later version says more"),
    ],
)
def test_the_trace_is_that_of_the_callers_traceparent(traceparent: str) -> None:
    assert origin(("traceparent", traceparent)) == Origin(ANONYMOUS.name, TRACE)


def test_without_a_traceparent_each_call_has_a_trace_of_its_own() -> None:
    traces = {origin(("user-agent", VALID)).trace_id for _ in range(10)}
    assert len(traces) == 10
    assert TRACE not in traces


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "nonsense",
        pytest.param(f"00-{'0' * 32}-{PARENT}-01", id="a trace id of zeros"),
        pytest.param(f"00-{TRACE}-{'0' * 16}-01", id="a parent id of zeros"),
        pytest.param(f"ff-{TRACE}-{PARENT}-01", id="the version that is none"),
        pytest.param(VALID.upper(), id="upper case"),
        pytest.param(f"00-{TRACE[:-1]}-{PARENT}-01", id="a trace id too short"),
        pytest.param(f"00-{TRACE}0-{PARENT}-01", id="a trace id too long"),
        pytest.param(f"00-{TRACE}-{PARENT[:-1]}g-01", id="a parent id that is not hexadecimal"),
        pytest.param(f"00-{TRACE}-{PARENT}", id="no flags"),
        pytest.param(f"0-{TRACE}-{PARENT}-01", id="half a version"),
    ],
)
def test_a_traceparent_that_is_none_is_ignored(traceparent: str) -> None:
    trace_id = origin(("traceparent", traceparent)).trace_id
    assert trace_id not in {None, TRACE, "0" * 32}


def test_the_metadata_around_it_does_not_matter() -> None:
    around = origin(("a-bin", b"\xff"), ("traceparent", VALID), ("tracestate", "x=1"))
    assert around == Origin(ANONYMOUS.name, TRACE)


def test_outside_of_a_call_there_is_no_trace() -> None:
    assert caller.origin(ANONYMOUS) == Origin(ANONYMOUS.name, None)


_NEARLY = r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-.*"
_texts = st.tuples(
    st.sampled_from(["traceparent", "tracestate", "baggage", "a"]),
    st.text() | st.from_regex(_NEARLY),
)
_bytes = st.tuples(st.sampled_from(["b-bin", "traceparent-bin"]), st.binary())


@hypothesis_settings(deadline=None)
@given(st.lists(_texts | _bytes, max_size=4))
def test_no_metadata_is_an_error(metadata: list[tuple[str, str | bytes]]) -> None:
    """A trace is a courtesy: a call never fails for it, and what is kept is a trace id."""
    trace_id = origin(*metadata).trace_id
    assert trace_id is not None
    assert len(trace_id) == 32
    assert int(trace_id, 16) > 0
