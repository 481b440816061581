"""Generated filters: each selects what its tree says, and none is an internal error."""

from __future__ import annotations

import re
import uuid
from typing import NamedTuple

import grpc
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from server.calls.text import is_blank
from server.tasks.fields import SORTABLE
from storage.query import (
    COMPARISONS,
    And,
    Comparison,
    Filter,
    HasTag,
    HasWords,
    Not,
    Or,
    Present,
    Value,
)
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import ListTasksRequest
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.filters import (
    ASSIGNEES,
    DESCRIPTIONS,
    EARLY,
    MIDDLE,
    TEXTS,
    TIMES,
    TITLES,
    UUID,
    ids,
    selected,
    time_of,
)

# An example of one call is cheap: three times as many as the profile says.
one_call_each = hypothesis_settings(max_examples=3 * hypothesis_settings().max_examples)


def outcome(stub: TaskServiceStub, **request: str) -> grpc.StatusCode:
    code: grpc.StatusCode = stub.ListTasks.future(ListTasksRequest(**request)).code()  # type: ignore[arg-type]
    return code


ANSWERS = {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT}

TOKENS = [
    *("AND", "OR", "NOT", "-", "(", ")", ":", "*", "a", '"b c"', "'", '"', "\\", "\0", ",", "."),
    *COMPARISONS,
    *("id", "tags", "status", "priority", *TEXTS, *TIMES),
    *("HIGH", "TASK_STATUS_PENDING", UUID, "2027-01-31T12:00:00Z", '"0001-01-01T00:00:00+23:59"'),
]


@one_call_each
@given(text=st.text(max_size=100))
def test_no_text_as_filter_is_an_internal_error(sample_stub: TaskServiceStub, text: str) -> None:
    assert outcome(sample_stub, filter=text) in ANSWERS


@one_call_each
@given(
    text=st.text(max_size=100)
    | st.lists(st.sampled_from([*SORTABLE, "asc", "desc", ","])).map(" ".join)
)
def test_no_text_as_order_is_an_internal_error(sample_stub: TaskServiceStub, text: str) -> None:
    assert outcome(sample_stub, order_by=text[:256]) in ANSWERS


@one_call_each
@given(tokens=st.lists(st.sampled_from(TOKENS), max_size=12), joint=st.sampled_from(["", " "]))
def test_no_order_of_the_grammars_tokens_is_an_internal_error(
    sample_stub: TaskServiceStub, tokens: list[str], joint: str
) -> None:
    assert outcome(sample_stub, filter=joint.join(tokens)) in ANSWERS


class Written(NamedTuple):
    """A tree and a text that means it."""

    tree: Filter
    text: str
    binding: int
    """The precedence of the text; a text of lower precedence than its place needs brackets."""


SEQUENCE, FACTOR, TERM, SIMPLE = range(4)


def _within(written: Written, binding: int) -> str:
    return written.text if written.binding >= binding else f"({written.text})"


def _not(written: Written, sign: str) -> Written:
    return Written(Not(written.tree), sign + _within(written, SIMPLE), TERM)


def _or(terms: list[Written]) -> Written:
    text = " OR ".join(_within(term, TERM) for term in terms)
    return Written(Or(tuple(term.tree for term in terms)), text, FACTOR)


def _and(terms: list[Written], joint: str) -> Written:
    text = joint.join(_within(term, FACTOR) for term in terms)
    return Written(And(tuple(term.tree for term in terms)), text, SEQUENCE)


def _compared(
    field: str, signs: str, values: list[tuple[Value, str]]
) -> st.SearchStrategy[Written]:
    return st.builds(
        lambda sign, value: Written(
            Comparison(field, sign, value[0]), f"{field} {sign} {value[1]}", SIMPLE
        ),
        st.sampled_from(signs.split()),
        st.sampled_from(values),
    )


def _simple(tree: Filter, text: str) -> st.SearchStrategy[Written]:
    return st.just(Written(tree, text, SIMPLE))


def _quoted(text: str) -> str:
    return '"' + re.sub(r'(["*])', r"\\\1", text) + '"'


_ORDER = "= != < <= > >="
_SEARCHED = ("invoice", "PAY", "late", "the invoice", "now the", "late late", "nowhere", "übung")

TERMS = st.one_of(
    _compared("id", "= !=", [(str(uuid.UUID(int=n)), str(uuid.UUID(int=n))) for n in (1, 2, 99)]),
    _compared("title", "= !=", [(title, _quoted(title)) for title in TITLES]),
    _compared("description", "= !=", [(text, _quoted(text)) for text in DESCRIPTIONS]),
    _compared("assigned_to", "= !=", [(name, _quoted(name)) for name in ASSIGNEES]),
    _compared("status", "= !=", [(1, "PENDING"), (3, "TASK_STATUS_COMPLETED"), (4, "CANCELLED")]),
    _compared("priority", _ORDER, [(2, "MEDIUM"), (3, "TASK_PRIORITY_HIGH"), (4, '"URGENT"')]),
    *(
        _compared(
            field, _ORDER, [(EARLY, EARLY.isoformat()), (MIDDLE, _quoted(MIDDLE.isoformat()))]
        )
        for field in TIMES
    ),
    *(_simple(Present(field), f"{field}:*") for field in ("id", "tags", *TEXTS, *TIMES)),
    *(_simple(HasTag(tag), f"tags:{_quoted(tag)}") for tag in ("billing", "Billing", "x y", "*")),
    *(_simple(HasWords(words), _quoted(words)) for words in _SEARCHED),
    *(
        _simple(HasWords(words, field), f"{field}:{_quoted(words)}")
        for words in _SEARCHED
        for field in ("title", "description")
    ),
)

FILTERS = st.recursive(
    TERMS,
    lambda inner: st.one_of(
        st.builds(_not, inner, st.sampled_from(["NOT ", "-"])),
        st.builds(_or, st.lists(inner, min_size=2, max_size=3)),
        st.builds(
            _and, st.lists(inner, min_size=2, max_size=3), st.sampled_from([" ", " AND ", "\n"])
        ),
    ),
    max_leaves=10,
)


def holds(tree: Filter, task: Task) -> bool:
    """What a filter means, said in Python.

    Words are searched in title and description each for itself.
    """
    match tree:
        case Comparison(field, sign, value) if field in TIMES:
            time = time_of(task, field)
            return sign == "!=" if time is None else COMPARISONS[sign](time, value)
        case Comparison(field, sign, value):
            return bool(COMPARISONS[sign](getattr(task, field), value))
        case Present(field):
            return task.HasField(field) if field in TIMES else bool(getattr(task, field))  # type: ignore[arg-type]
        case HasTag(tag):
            return tag.lower() in map(str.lower, task.tags)
        case HasWords(words, field):
            texts = [getattr(task, name) for name in ((field,) if field else TEXTS[:2])]
            return any(f" {words} ".lower() in f" {text} ".lower() for text in texts)
        case Not(term):
            return not holds(term, task)
        case And(terms):
            return all(holds(term, task) for term in terms)
        case Or(terms):
            return any(holds(term, task) for term in terms)


@one_call_each
@given(written=FILTERS)
def test_a_filter_selects_what_its_tree_says(
    sample_stub: TaskServiceStub, samples: list[Task], written: Written
) -> None:
    expected = {task.id for task in samples if holds(written.tree, task)}
    assert ids(selected(sample_stub, written.text)) == expected


@one_call_each
@given(text=FILTERS.map(lambda written: written.text) | st.sampled_from(TOKENS))
def test_not_is_the_exact_complement(
    sample_stub: TaskServiceStub, samples: list[Task], text: str
) -> None:
    if outcome(sample_stub, filter=text) is not grpc.StatusCode.OK or is_blank(text):
        return
    found, others = ids(selected(sample_stub, text)), ids(selected(sample_stub, f"NOT ({text})"))
    assert (found & others, found | others) == (set(), ids(samples))
