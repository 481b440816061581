"""Filters and orders as texts: the tree that each becomes, and the errors."""

from __future__ import annotations

import datetime as dt
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.tasks.fields import SORTABLE, parse_order
from server.tasks.filters import MAX_DEPTH, MAX_TERMS, parse_filter
from server.tasks.validation import FieldError
from storage.query import (
    COMPARISONS,
    NEWEST_FIRST,
    And,
    Comparison,
    Filter,
    HasTag,
    HasWords,
    Not,
    Or,
    Present,
    Sort,
)
from tests.support.filters import ANY, TEXTS, TIMES, UUID

A, B, C, D = (HasWords(letter) for letter in "abcd")
NOON = dt.datetime(2027, 1, 31, 12, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        # How terms are combined.
        ("", None),
        (" \t\n", None),
        ("a", A),
        ("a AND b", And((A, B))),
        ("a AND b AND c", And((A, B, C))),
        ("a OR b", Or((A, B))),
        ("a OR b OR c", Or((A, B, C))),
        ("a b", And((A, B))),
        ("a b AND c", And((And((A, B)), C))),
        ("a AND b OR c", And((A, Or((B, C))))),
        ("a OR b AND c", And((Or((A, B)), C))),
        ("a OR b c OR d", And((Or((A, B)), Or((C, D))))),
        ("(a AND b) OR c", Or((And((A, B)), C))),
        ("(a)(b)", And((A, B))),
        ("((a))", A),
        (" ( a )\n", A),
        ("NOT a", Not(A)),
        ("NOT(a)", Not(A)),
        ('NOT"a"', Not(A)),
        ("-a", Not(A)),
        ('-"a"', Not(A)),
        ("a -b", And((A, Not(B)))),
        ("NOT a OR b", Or((Not(A), B))),
        ("NOT a AND b", And((Not(A), B))),
        ("NOT (a OR b)", Not(Or((A, B)))),
        ("-(NOT a)", Not(Not(A))),
        ('a AND"b"', And((A, B))),
        # Words and what is only like a keyword.
        ('"a b"', HasWords("a b")),
        ("a-b", HasWords("a-b")),
        ("a*", HasWords("a", is_prefix=True)),
        ('"a b*"', HasWords("a b", is_prefix=True)),
        ('"a\\*"', HasWords("a*")),
        ("ANDROID NOTE ORDER", And((HasWords("ANDROID"), HasWords("NOTE"), HasWords("ORDER")))),
        ('"AND"', HasWords("AND")),
        ("2027-01-31T12:00:00Z", HasWords("2027-01-31T12:00:00Z")),
        ("Übung 日本", And((HasWords("Übung"), HasWords("日本")))),
        # Quoting.
        ("title = 'a b'", Comparison("title", "=", "a b")),
        ("title='it\\'s'", Comparison("title", "=", "it's")),
        ('title="say \\"a\\""', Comparison("title", "=", 'say "a"')),
        ('title="it\'s"', Comparison("title", "=", "it's")),
        ('title="a\\\\b"', Comparison("title", "=", "a\\b")),
        ('title="a\nb"', Comparison("title", "=", "a\nb")),
        ('title="\\a\\\n"', Comparison("title", "=", "a\n")),
        ('title="(a) AND <b>"', Comparison("title", "=", "(a) AND <b>")),
        ('assigned_to = ""', Comparison("assigned_to", "=", "")),
        ('title = "\\*a\\*"', Comparison("title", "=", "*a*")),
        ("title = a*b", Comparison("title", "=", "a*b")),
        # Each field with its operators.
        (f"id = {UUID}", Comparison("id", "=", UUID)),
        (f'id != "{UUID}"', Comparison("id", "!=", UUID)),
        ("id:*", Present("id")),
        *((f"{field} = x", Comparison(field, "=", "x")) for field in TEXTS),
        *((f"{field} != x", Comparison(field, "!=", "x")) for field in TEXTS),
        *((f"{field}:*", Present(field)) for field in (*TEXTS, "tags", *TIMES)),
        ("title:word", HasWords("word", "title")),
        ('description:"two words"', HasWords("two words", "description")),
        ("title:word*", HasWords("word", "title", is_prefix=True)),
        ("tags:billing", HasTag("billing")),
        ('tags:"\\*"', HasTag("*")),
        ("status = PENDING", Comparison("status", "=", 1)),
        ("status = TASK_STATUS_IN_PROGRESS", Comparison("status", "=", 2)),
        ('status != "COMPLETED"', Comparison("status", "!=", 3)),
        *((f"priority {sign} HIGH", Comparison("priority", sign, 3)) for sign in COMPARISONS),
        ("priority = TASK_PRIORITY_URGENT", Comparison("priority", "=", 4)),
        *(
            (f"{field} {sign} 2027-01-31T12:00:00Z", Comparison(field, sign, NOON))
            for field in TIMES
            for sign in COMPARISONS
        ),
        ("due_date<2027-01-31T12:00:00Z", Comparison("due_date", "<", NOON)),
        ('due_date<"2027-01-31T12:00:00Z"', Comparison("due_date", "<", NOON)),
        ("(due_date<2027-01-31t12:00:00z)", Comparison("due_date", "<", NOON)),
        ("due_date<2027-01-31T14:00:00+02:00", Comparison("due_date", "<", NOON)),
        ('due_date<"2027-01-31T12:00:00-00:00"', Comparison("due_date", "<", NOON)),
        (
            "due_date<2027-01-31T12:00:00.25Z",
            Comparison("due_date", "<", NOON + dt.timedelta(milliseconds=250)),
        ),
        (
            "due_date < 2027-01-31T12:00:00Z a",
            And((Comparison("due_date", "<", NOON), A)),
        ),
    ],
)
def test_a_filter_becomes_a_tree(text: str, tree: Filter | None) -> None:
    assert parse_filter(text) == tree


def filter_mistake(text: str) -> FieldError:
    with pytest.raises(FieldError) as raised:
        parse_filter(text)
    return raised.value


@pytest.mark.parametrize(
    ("text", "description"),
    [
        # The grammar.
        ("a AND", "at the end: the filter is not complete"),
        ("NOT", "at the end: the filter is not complete"),
        ("(a", "at the end: the filter is not complete"),
        ("title =", "at the end: the filter is not complete"),
        ("AND a", "at character 1: 'AND' is not expected here"),
        ("a AND AND b", "at character 7: 'AND' is not expected here"),
        ("a)", "at character 2: ')' is not expected here"),
        ("()", "at character 2: ')' is not expected here"),
        ("NOT NOT a", "at character 5: 'NOT' is not expected here"),
        ("--a", "at character 2: '-' is not expected here"),
        ("title = OR", "at character 9: 'OR' is not expected here"),
        ("title = a = b", "at character 11: '=' is not expected here"),
        ('"title" = a', "at character 9: '=' is not expected here"),
        ("a, b", "at character 2: ',' is not expected here"),
        ('title = "a', "at character 9: '\"' is not expected here"),
        ("due_date < 2027-01-31T12:00:00", "at character 25: ':' is not expected here"),
        ("due_date < 2027-01-31T12:00:00Zulu", "at character 25: ':' is not expected here"),
        # The position counts characters, whatever they take in bytes or UTF-16.
        ("ö😀 é )", "at character 6: ')' is not expected here"),
        # The fields.
        ("a titel = b", "at character 3: there is no field 'titel'; known are id, title, "),
        ("Title = b", "at character 1: there is no field 'Title'; known are id, title, "),
        ("task.title = b", "at character 1: there is no field 'task.title'; known are id, "),
        ("etag = b", "at character 1: there is no field 'etag'; known are id, title, "),
        # The operators.
        ("title < a", "at character 7: title does not support the operator <"),
        ("status >= PENDING", "at character 8: status does not support the operator >="),
        ("tags = billing", "at character 6: tags does not support the operator ="),
        ("assigned_to:ana", "at character 12: assigned_to does not support the operator :"),
        ("status:*", "at character 7: status does not support the operator :"),
        ("priority:HIGH", "at character 9: priority does not support the operator :"),
        ('due_date:"*"', "at character 9: due_date does not support the operator :"),
        # The values.
        ("id = 1", "at character 6: '1' must be a UUID"),
        ("status = DONE", "at character 10: 'DONE' must be one of PENDING, IN_PROGRESS, "),
        ("status = pending", "at character 10: 'pending' must be one of PENDING, "),
        ("status = 1", "at character 10: '1' must be one of PENDING, "),
        ("status = UNSPECIFIED", "at character 10: 'UNSPECIFIED' must be one of PENDING, "),
        ("priority > TASK_STATUS_PENDING", "at character 12: 'TASK_STATUS_PENDING' must be one "),
        ("due_date = tomorrow", "at character 12: 'tomorrow' must be an RFC 3339 timestamp "),
        ("due_date = 2027-01-31", "at character 12: '2027-01-31' must be an RFC 3339 timestamp "),
        ("due_date = 2027-02-29T00:00:00Z", "at character 12: '2027-02-29T00:00:00Z' must be an "),
        ('due_date = "2027-01-31T12:00Z"', "at character 12: '2027-01-31T12:00Z' must be an "),
        ("due_date = 0001-01-01T00:00:00+01:00", "at character 12: '0001-01-01T00:00:00+01:00' "),
        ("due_date = 9999-12-31T23:59:59-01:00", "at character 12: '9999-12-31T23:59:59-01:00' "),
        ('due_date = ""', "at character 12: '' must be an RFC 3339 timestamp "),
        ("title = a\0", "at character 9: 'a\\x00' must not contain the NUL character"),
        ('tags:"\0"', "at character 6: '\\x00' must not contain the NUL character"),
        ("a\0", "at character 1: 'a\\x00' must not contain the NUL character"),
    ],
)
def test_a_mistake_in_a_filter_is_reported_with_its_position(text: str, description: str) -> None:
    mistake = filter_mistake(text)
    assert str(mistake).startswith(description)
    assert mistake.reason == "FILTER_INVALID"


def test_a_mistake_quotes_no_more_than_a_part_of_a_long_text() -> None:
    """An error travels in a header, of which a client takes only some kilobytes."""
    assert len(str(filter_mistake(f"status = {'x' * 2000}"))) < 250


@pytest.mark.parametrize("joint", [" ", " AND ", " OR ", " OR -"])
def test_a_filter_has_a_limited_number_of_terms(joint: str) -> None:
    terms = [ANY] * MAX_TERMS
    assert parse_filter(joint.join(terms))
    assert filter_mistake(joint.join([*terms, ANY])).reason == "FILTER_TOO_LONG"


def test_terms_are_counted_across_groups() -> None:
    half = " OR ".join([ANY] * (MAX_TERMS // 2))
    assert parse_filter(f"({half}) AND ({half})")
    assert filter_mistake(f"({half}) AND ({half} OR {ANY})").reason == "FILTER_TOO_LONG"


@pytest.mark.parametrize("opening", ["(", "NOT (", "-(", "tags:a OR (tags:b ("])
def test_a_filter_has_a_limited_depth(opening: str) -> None:
    """A deeper tree would exceed Python's recursion limit."""

    def nested(depth: int) -> str:
        times = depth // opening.count("(")
        return opening * times + "a" + ")" * depth

    assert parse_filter(nested(MAX_DEPTH))
    assert filter_mistake(nested(MAX_DEPTH + 2)).reason == "FILTER_TOO_DEEP"


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("", NEWEST_FIRST),
        (" ", NEWEST_FIRST),
        *((field, (Sort(field),)) for field in sorted(SORTABLE)),
        ("priority asc", (Sort("priority"),)),
        ("priority desc", (Sort("priority", descending=True),)),
        ("priority desc, due_date", (Sort("priority", descending=True), Sort("due_date"))),
        (" priority  desc ,due_date ", (Sort("priority", descending=True), Sort("due_date"))),
        (
            "status,title desc,created_at",
            (Sort("status"), Sort("title", descending=True), Sort("created_at")),
        ),
    ],
)
def test_an_order_becomes_its_terms(text: str, order: tuple[Sort, ...]) -> None:
    assert parse_order(text) == order


@pytest.mark.parametrize(
    ("text", "description"),
    [
        ("colour", "at character 1: cannot order by 'colour'; known are assigned_to, created_at, "),
        ("id", "at character 1: cannot order by 'id'; known are "),
        ("tags", "at character 1: cannot order by 'tags'; known are "),
        ("Priority", "at character 1: cannot order by 'Priority'; known are "),
        ("title, colour", "at character 8: cannot order by 'colour'; known are "),
        ("title,", "at character 7: cannot order by ''; known are "),
        (",", "at character 1: cannot order by ''; known are "),
        ("title up", "at character 1: 'up' must be asc or desc"),
        ("title DESC", "at character 1: 'DESC' must be asc or desc"),
        ("title desc desc", "at character 1: 'desc desc' must be asc or desc"),
        ("title priority", "at character 1: 'priority' must be asc or desc"),
        ("title, status, title desc", "at character 16: title occurs twice"),
    ],
)
def test_a_mistake_in_an_order_is_reported_with_its_position(text: str, description: str) -> None:
    with pytest.raises(FieldError) as raised:
        parse_order(text)
    assert str(raised.value).startswith(description)
    assert raised.value.reason == "ORDER_BY_INVALID"


@given(
    field=st.sampled_from(["title", "description", "assigned_to", "created_by"]),
    sign=st.sampled_from(["=", "!="]),
    value=st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=50),
)
def test_every_text_can_be_quoted(field: str, sign: str, value: str) -> None:
    quoted = re.sub(r'(["*\\])', r"\\\1", value)
    assert parse_filter(f'{field} {sign} "{quoted}"') == Comparison(field, sign, value)
