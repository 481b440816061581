"""Build the SQL of lists: filters, which are typed trees, orders and cursors.

Values are bound parameters and names come from the tables: no text of a client becomes SQL.
"""

import datetime as dt
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple, TypeAlias

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, TSQUERY, array
from sqlalchemy.types import TypeEngine

from storage.tables import (
    INFINITY,
    MINUS_INFINITY,
    NEGATED_PRIORITY,
    SEARCH_CONFIG,
    AnyColumn,
    TaskRow,
    absent_last,
    tasks,
)


class Parameter(str):
    """The name of a value that is given when the statement runs."""

    __slots__ = ()


Value = str | int | dt.datetime


@dataclass(frozen=True, slots=True)
class Comparison:
    """`field operator value`; an absent time fails every comparison but `!=`."""

    field: str
    operator: str
    value: Value


@dataclass(frozen=True, slots=True)
class Present:
    """The field has a value: it is neither NULL, nor empty."""

    field: str


@dataclass(frozen=True, slots=True)
class HasTag:
    """The task has this tag, in upper or lower case."""

    tag: str


@dataclass(frozen=True, slots=True)
class HasWords:
    """The words in sequence, in one field or in either; of a prefix, the last is a beginning."""

    words: str
    field: str | None = None
    is_prefix: bool = False


@dataclass(frozen=True, slots=True)
class Not:
    term: "Filter"


@dataclass(frozen=True, slots=True)
class And:
    terms: "tuple[Filter, ...]"


@dataclass(frozen=True, slots=True)
class Or:
    terms: "tuple[Filter, ...]"


Filter = Comparison | Present | HasTag | HasWords | Not | And | Or

_Compare: TypeAlias = Callable[[Any, Any], Any]

COMPARISONS: dict[str, _Compare] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True, slots=True)
class Sort:
    """One term of an order."""

    field: str
    descending: bool = False


NEWEST_FIRST = (Sort("created_at", descending=True),)

Cursor = tuple[Value | None, ...]
"""A place in an order: a row's value for each term of `total_order`."""


def total_order(order: Sequence[Sort]) -> tuple[Sort, ...]:
    """Complete an order to one without ties: by created_at and id, as every index is."""
    named = {sort.field for sort in order}
    last = order[-1].descending
    ties = [Sort(field, last) for field in ("created_at", "id") if field not in named]
    return (*order, *ties)


def cursor_at(row: TaskRow, order: Sequence[Sort]) -> Cursor:
    """Return the place of a row in the order."""
    return tuple(getattr(row, sort.field) for sort in total_order(order))


class Form(NamedTuple):
    """A filter and a cursor with parameters for values, by which queries share a statement."""

    filter_: Filter | None
    cursor: Cursor | None
    values: dict[str, Value]


def form_of(filter_: Filter | None, cursor: Cursor | None = None) -> Form:
    """Replace the values of a filter and a cursor by parameters."""
    values: dict[str, Value] = {}

    def parameter(value: Value) -> Parameter:
        name = f"value_{len(values)}"
        values[name] = value
        return Parameter(name)

    def parameterized(term: Filter) -> Filter:
        match term:
            case Comparison(field, operator, value):
                return Comparison(field, operator, parameter(value))
            case HasTag(tag):
                return HasTag(parameter(tag))
            case HasWords(words, field, is_prefix):
                return HasWords(parameter(words), field, is_prefix)
            case Not(inner):
                return Not(parameterized(inner))
            case And(terms):
                return And(tuple(map(parameterized, terms)))
            case Or(terms):
                return Or(tuple(map(parameterized, terms)))
            case Present():
                return term

    place = cursor and tuple(None if value is None else parameter(value) for value in cursor)
    return Form(filter_ and parameterized(filter_), place, values)


def _bound(value: Value, type_: TypeEngine[Any]) -> AnyColumn:
    if isinstance(value, Parameter):
        return sa.bindparam(value, type_=type_)
    return sa.literal(value, type_)


def condition(term: Filter, task: sa.FromClause = tasks) -> sa.ColumnElement[bool]:
    """Build the condition of a filter; it is never NULL, so that NOT is its complement."""
    match term:
        case Comparison():
            return _comparison(term, task)
        case Present(field):
            return _presence(task.c[field])
        case HasTag(tag):
            return _tag_keys(task).contains(sa.func.task_tag_keys(array([_bound(tag, sa.Text())])))
        case HasWords():
            return _words(term, task)
        case Not(inner):
            return sa.not_(condition(inner, task))
        case And(terms):
            return sa.and_(*(condition(inner, task) for inner in terms))
        case Or(terms):
            return sa.or_(*(condition(inner, task) for inner in terms))


def _comparison(term: Comparison, task: sa.FromClause) -> sa.ColumnElement[bool]:
    column = task.c[term.field]
    value = _bound(term.value, column.type)
    result: sa.ColumnElement[bool] = COMPARISONS[term.operator](_operand(column), value)
    if _may_be_absent(column) and term.operator in {">", ">="}:
        return sa.and_(result, column.is_not(None))
    return result


def _operand(column: AnyColumn, *, descending: bool = False) -> AnyColumn:
    return absent_last(column, descending=descending) if _may_be_absent(column) else column


def _may_be_absent(column: AnyColumn) -> bool:
    return bool(tasks.c[str(column.key)].nullable)


def _presence(column: AnyColumn) -> sa.ColumnElement[bool]:
    if _may_be_absent(column):
        return column.is_not(None)
    if column.key == "tags":
        return sa.func.cardinality(column) > 0
    return column != "" if isinstance(column.type, sa.Text) else sa.literal(value=True)


def _tag_keys(task: sa.FromClause) -> AnyColumn:
    """Return the tags as they are compared; computed for a row that is not of the table."""
    if task is tasks:
        return tasks.c.tag_keys
    return sa.func.task_tag_keys(task.c["tags"], type_=ARRAY(sa.Text))


def _search(task: sa.FromClause) -> AnyColumn:
    """Return the words that searches examine."""
    if task is tasks:
        return tasks.c.search
    return sa.func.task_search(task.c["title"], task.c["description"])


# The words of each field have a weight of their own.
_WEIGHTS = {None: "", "title": "A", "description": "D"}


def _words(term: HasWords, task: sa.FromClause) -> sa.ColumnElement[bool]:
    """Build the condition of a search; a text without words matches no task.

    PostgreSQL writes a phrase as 'one' <-> 'two'; a label behind a word restricts it to a weight.
    """
    words = sa.func.task_words(_bound(term.words, sa.Text()))
    phrase: AnyColumn = sa.func.phraseto_tsquery(SEARCH_CONFIG, words)
    weight = _WEIGHTS[term.field]
    if weight or term.is_prefix:
        written = sa.cast(phrase, sa.Text) + " "
        written = sa.func.replace(written, "' ", f"':{weight} ") if weight else written
        label = f":*{weight} " if term.is_prefix else ""
        last = f"':{weight} $" if weight else "' $"
        written = sa.func.regexp_replace(written, last, f"'{label}") if label else written
        phrase = sa.cast(written, TSQUERY)
    return _search(task).bool_op("@@")(phrase)


class _Key(NamedTuple):
    """A term of an order, as an index holds it."""

    expression: AnyColumn
    descending: bool
    is_negated: bool = False

    def place(self, value: Value | None) -> AnyColumn:
        if value is None:
            return MINUS_INFINITY if self.descending else INFINITY
        place = _bound(value, self.expression.type)
        return -place if self.is_negated else place


def _keys(order: Sequence[Sort]) -> list[_Key]:
    """Return the terms of the total order.

    A priority whose direction is not that of the last term is negated: `priority desc, due_date`
    then has one direction, and each page begins in the index where the last one ended.
    """
    last = order[-1].descending
    return [
        _Key(NEGATED_PRIORITY, last, is_negated=True)
        if sort.field == "priority" and sort.descending != last
        else _Key(_operand(tasks.c[sort.field], descending=sort.descending), sort.descending)
        for sort in total_order(order)
    ]


def ordering(order: Sequence[Sort]) -> list[AnyColumn]:
    """Build the ORDER BY of a list."""
    return [
        key.expression.desc() if key.descending else key.expression.asc() for key in _keys(order)
    ]


def after(order: Sequence[Sort], cursor: Cursor) -> sa.ColumnElement[bool]:
    """Build the condition for rows after a place in the order.

    Terms of one direction become a single row comparison, where an index can begin; between runs
    of different directions the condition is spelled out, under a bound on the first term.
    """
    terms = list(zip(_keys(order), cursor, strict=True))
    *runs, last = [list(run) for _, run in groupby(terms, key=lambda term: term[0].descending)]
    result = _compared(last, operator.lt, operator.gt)
    for run in reversed(runs):
        beyond = _compared(run, operator.lt, operator.gt)
        result = sa.or_(beyond, sa.and_(_compared(run, operator.eq, operator.eq), result))
    return sa.and_(_compared(terms[:1], operator.le, operator.ge), result) if runs else result


def _compared(
    run: Sequence[tuple[_Key, Value | None]], descending: _Compare, ascending: _Compare
) -> sa.ColumnElement[bool]:
    """Compare a row's terms, all of one direction, with a place."""
    compare = descending if run[0][0].descending else ascending
    here = sa.tuple_(*(key.expression for key, _ in run))
    there = sa.tuple_(*(key.place(value) for key, value in run))
    result: sa.ColumnElement[bool] = compare(here, there)
    return result
