"""The names of principals: each has one spelling, and all of it is shown."""

from __future__ import annotations

import unicodedata

import grpc
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from server.access.principal import name_problem
from storage.database import Database
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import CreateTaskRequest, ListTasksRequest
from tests.support.access import READ, WRITE, StubOf
from tests.support.errors import fails

UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED

BLANK = "the name is blank"
PADDED = "the name begins or ends with white space"
HIDDEN = "the name has characters that are not shown"
NOT_NFC = "the name is not in Unicode's normal form C"
RESERVED = "the name is reserved"
LONG = "the name has more than 200 characters"

REFUSED = {
    "": BLANK,
    " ": BLANK,
    "\t\n": BLANK,
    "\u00a0\u2003": BLANK,
    " ann": PADDED,
    "ann ": PADDED,
    "ann\n": PADDED,
    "\u00a0ann": PADDED,
    "ann\x1b[31m": HIDDEN,
    "ann\nadmin": HIDDEN,
    "ann\x7f": HIDDEN,
    "ann\x9b": HIDDEN,
    "ann\u200b": HIDDEN,
    "a\u200dnn": HIDDEN,
    "ann\u202enimda": HIDDEN,
    "\u2066ann": HIDDEN,
    "ann\u00ad": HIDDEN,
    "ann\u034f": HIDDEN,
    "ann\ufe0f": HIDDEN,
    "ann\u3164": HIDDEN,
    "\uffa0": HIDDEN,
    "\u2800": HIDDEN,
    "ann\U000e0041": HIDDEN,
    "ann\ud800": HIDDEN,
    "ann\u2028": PADDED,
    "ann\u00a0lee": HIDDEN,
    "Rene\u0301": NOT_NFC,
    "\u212b": NOT_NFC,
    "anonymous": RESERVED,
    "Anonymous": RESERVED,
    "ANONYMOUS": RESERVED,
    "\uff41nonymous": RESERVED,
    "a" * 201: LONG,
}
TAKEN = [
    "ann",
    "Ann Lee",
    "ann@example.com",
    "spiffe://example/billing",
    "Ren\u00e9",
    "\u0430nn",  # Cyrillic: look-alikes of another script are for the issuer to refuse.
    "\u660e",
    "anonymous-2",
    "a" * 200,
]


@pytest.mark.parametrize("name", REFUSED, ids=ascii)
def test_a_name_that_could_be_mistaken_is_refused_as_all_are(stub_of: StubOf, name: str) -> None:
    """In the same words as any bad token; the log says why, and has not the name."""
    with capture_logs() as logs, fails(UNAUTHENTICATED, "UNAUTHENTICATED") as failure:
        stub_of(name, READ).ListTasks(ListTasksRequest())
    assert failure.message == "valid credentials are needed"
    (line,) = [line for line in logs if line["event"] == "token refused"]
    assert (line["log_level"], line["why"]) == ("debug", REFUSED[name])


@pytest.mark.parametrize("name", TAKEN, ids=ascii)
def test_any_other_name_is_taken_as_it_is(stub_of: StubOf, database: Database, name: str) -> None:
    stub = stub_of(name, READ, WRITE)
    assert stub.CreateTask(CreateTaskRequest(task=Task(title="a task"))).created_by == name


@hypothesis_settings(max_examples=500, deadline=None)
@given(st.text(max_size=210))
def test_a_name_that_is_taken_has_nothing_that_is_not_shown(name: str) -> None:
    if name_problem(name):
        return
    assert 0 < len(name) <= 200
    assert name == name.strip() == unicodedata.normalize("NFC", name)
    assert not {unicodedata.category(character) for character in name} & {
        "Cc",
        "Cf",
        "Cs",
        "Co",
        "Cn",
        "Zl",
    }
    assert unicodedata.normalize("NFKC", name).casefold() != "anonymous"
