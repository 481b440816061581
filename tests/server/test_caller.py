"""The trace that a call belongs to, as its caller writes it (W3C Trace Context)."""

from __future__ import annotations

from typing import cast

import grpc
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from server.caller import ANONYMOUS, origin_of
from storage.repository import Origin

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
VALID = f"00-{TRACE}-{PARENT}-01"


class Call:
    """A call, of which only the metadata is read; as grpcio gives it."""

    def __init__(self, *metadata: tuple[str, str | bytes]) -> None:
        self._metadata = metadata

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return self._metadata


def origin(*metadata: tuple[str, str | bytes]) -> Origin:
    return origin_of(cast(grpc.ServicerContext, Call(*metadata)))


@pytest.mark.parametrize(
    "traceparent",
    [
        VALID,
        f"00-{TRACE}-{PARENT}-00",
        pytest.param(f"cc-{TRACE}-{PARENT}-01-what-will-be", id="a later version says more"),
    ],
)
def test_the_trace_is_that_of_the_callers_traceparent(traceparent: str) -> None:
    assert origin(("traceparent", traceparent)) == Origin(ANONYMOUS, TRACE)


def test_without_a_traceparent_there_is_no_trace() -> None:
    assert origin(("user-agent", VALID)) == Origin(ANONYMOUS, None)


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
        pytest.param(f" {VALID}", id="a space before it"),
    ],
)
def test_a_traceparent_that_is_none_is_ignored(traceparent: str) -> None:
    assert origin(("traceparent", traceparent)) == Origin(ANONYMOUS, None)


def test_the_metadata_around_it_does_not_matter() -> None:
    around = origin(("a-bin", b"\xff"), ("traceparent", VALID), ("tracestate", "x=1"))
    assert around == Origin(ANONYMOUS, TRACE)


_NEARLY = r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-.*"
_keys = st.sampled_from(["traceparent", "a", "b-bin"])
_values = st.text() | st.from_regex(_NEARLY) | st.binary()


@hypothesis_settings(deadline=None)
@given(st.lists(st.tuples(_keys, _values), max_size=4))
def test_no_metadata_is_an_error(metadata: list[tuple[str, str | bytes]]) -> None:
    """A trace is a courtesy: a call never fails for it, and what is kept is a trace id."""
    trace_id = origin(*metadata).trace_id
    assert trace_id is None or (len(trace_id) == 32 and int(trace_id, 16) > 0)
