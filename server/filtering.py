"""Filters (AIP-160) and orders (AIP-132): a caller's text becomes a tree of `storage.query`.

The grammar stands in `filter.lark`. A mistake is a FieldError that names its place in the text.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import NamedTuple, NoReturn, TypeVar

from lark import Lark, Token, Transformer, UnexpectedInput, v_args

from server.limits import CONTRACT, Limits
from server.validation import UUID, FieldError
from storage.query import (
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
    Value,
)
from taskservice.v1.task_pb2 import TaskPriority, TaskStatus

T = TypeVar("T")

# There is no index to search in what has just changed.
MAX_WATCH_SEARCHES = 5
# PostgreSQL takes words of 2046 bytes, in lower case, which may be longer.
MAX_WORD_BYTES = 1000

_EQUALITY = frozenset({"=", "!="})
_ORDER = _EQUALITY | {"<", "<=", ">", ">="}

_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")


class _Field(NamedTuple):
    """What may be asked of a field: its operators, and how its values are read."""

    operators: frozenset[str]
    parse: Callable[[str], Value]
    has: Callable[[str], Filter] | None = None
    presence: bool = True


def _enum(items: Sequence[tuple[str, int]], prefix: str) -> Callable[[str], int]:
    numbers = {name.removeprefix(prefix): number for name, number in items if number != 0}

    def parse(text: str) -> int:
        name = text.removeprefix(prefix)
        if name not in numbers:
            raise ValueError(f"must be one of {', '.join(numbers)}")
        return numbers[name]

    return parse


def _text(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not contain the NUL character")
    return text


def _searched(text: str) -> str:
    if any(len(word.encode()) > MAX_WORD_BYTES for word in text.split()):
        raise ValueError("is too long a word to search for")
    return _text(text)


def _uuid(text: str) -> str:
    if not UUID.fullmatch(text):
        raise ValueError("must be a UUID")
    return text


def _time(text: str) -> dt.datetime:
    try:
        time = dt.datetime.fromisoformat(_RFC_3339.fullmatch(text.upper())[0])  # type: ignore[index]
        return time.astimezone(dt.UTC)  # PostgreSQL knows fewer offsets than RFC 3339.
    except (TypeError, ValueError, OverflowError):
        raise ValueError('must be an RFC 3339 timestamp such as "2027-01-31T12:00:00Z"') from None


def _words_of(field: str) -> Callable[[str], Filter]:
    return lambda words: HasWords(words, field)


_FIELDS: dict[str, _Field] = {
    "id": _Field(_EQUALITY, _uuid),
    "title": _Field(_EQUALITY, _text, has=_words_of("title")),
    "description": _Field(_EQUALITY, _text, has=_words_of("description")),
    "status": _Field(_EQUALITY, _enum(TaskStatus.items(), "TASK_STATUS_"), presence=False),
    "priority": _Field(_ORDER, _enum(TaskPriority.items(), "TASK_PRIORITY_"), presence=False),
    "assigned_to": _Field(_EQUALITY, _text),
    "created_by": _Field(_EQUALITY, _text),
    "tags": _Field(frozenset(), _text, has=HasTag),
    **{
        name: _Field(_ORDER, _time)
        for name in ("due_date", "created_at", "updated_at", "completed_at", "deleted_at")
    },
}

# What an index can serve.
SORTABLE = frozenset(
    {"created_at", "updated_at", "due_date", "priority", "status", "assigned_to", "title"}
)


class _Part(NamedTuple):
    """A part of the tree while it is built, with what the limits count."""

    node: Filter
    start: int
    depth: int = 0
    terms: int = 1


@v_args(inline=True)
class _TreeBuilder(Transformer[Token, Filter]):
    """Turns each rule of the grammar, as soon as it is recognised, into a part of the tree."""

    def __init__(self, limits: Limits) -> None:
        super().__init__()
        self._limits = limits

    def start(self, part: _Part) -> Filter:
        return part.node

    def expression(self, *parts: _Part | Token) -> _Part:
        return self._joined(And, parts)

    def sequence(self, *parts: _Part) -> _Part:
        return self._joined(And, parts)

    def factor(self, *parts: _Part | Token) -> _Part:
        return self._joined(Or, parts)

    def term(self, part: _Part) -> _Part:
        return part

    simple = term

    def negated(self, _sign: Token, part: _Part) -> _Part:
        return part._replace(node=Not(part.node))

    def group(self, part: _Part) -> _Part:
        if part.depth == self._limits.filter_depth:
            problem = f"nested deeper than {self._limits.filter_depth}"
            _refuse(part.start, problem, "FILTER_TOO_DEEP")
        return part._replace(depth=part.depth + 1)

    def argument(self, token: Token) -> Token:
        if token.type != "STRING":
            return token
        return token.update(value=re.sub(r"\\(.)", r"\1", token[1:-1], flags=re.DOTALL))

    def words(self, words: Token) -> _Part:
        return _Part(HasWords(_value(words, _searched)), words.start_pos or 0)

    def comparison(self, name: Token, operator: Token, argument: Token) -> _Part:
        field = _FIELDS.get(name)
        if field is None:
            _refuse(
                name.start_pos, f"there is no field {name[:100]!a}; known are {', '.join(_FIELDS)}"
            )
        if operator == ":":
            return _Part(_has(name, field, operator, argument), name.start_pos or 0)
        if operator not in field.operators:
            _refuse(operator.start_pos, f"{name} does not know the operator {operator}")
        comparison = Comparison(str(name), str(operator), _value(argument, field.parse))
        return _Part(comparison, name.start_pos or 0)

    def _joined(self, kind: type[And | Or], parts: tuple[_Part | Token, ...]) -> _Part:
        joined = [part for part in parts if isinstance(part, _Part)]
        if len(joined) == 1:
            return joined[0]
        terms = 0
        for part in joined:
            terms += part.terms
            if terms > self._limits.filter_terms:
                problem = f"more than {self._limits.filter_terms} terms"
                _refuse(part.start, problem, "FILTER_TOO_LONG")
        depth = max(part.depth for part in joined)
        return _Part(kind(tuple(part.node for part in joined)), joined[0].start, depth, terms)


def _has(name: Token, field: _Field, operator: Token, argument: Token) -> Filter:
    if argument.type == "TEXT" and argument == "*" and field.presence:
        return Present(str(name))
    if field.has is None:
        _refuse(operator.start_pos, f"{name} does not know the operator :")
    return field.has(_value(argument, _searched))


def _value(token: Token, parse: Callable[[str], T]) -> T:
    try:
        return parse(str(token))
    except ValueError as error:
        _refuse(token.start_pos, f"{str(token)[:100]!a} {error}")


def _refuse(start: int | None, description: str, reason: str = "FILTER_INVALID") -> NoReturn:
    raise FieldError(f"at character {(start or 0) + 1}: {description}", reason)


@cache
def _parser(limits: Limits) -> Lark:
    builder = _TreeBuilder(limits)
    return Lark.open(
        "filter.lark", rel_to=__file__, parser="lalr", lexer="basic", transformer=builder
    )


@lru_cache(maxsize=1024)
def parse_filter(text: str, limits: Limits = CONTRACT) -> Filter | None:
    """The tree of a filter; None for an empty one. Raises: FieldError."""
    if not text.strip():
        return None
    try:
        return _parser(limits).parse(text)  # type: ignore[return-value]
    except UnexpectedInput as error:
        raise FieldError(_explain(error, text), "FILTER_INVALID") from None


def parse_watch_filter(text: str, limits: Limits) -> Filter | None:
    """The tree of a watch's filter, of which every change is asked. Raises: FieldError."""
    filter_ = parse_filter(text, limits)
    if filter_ is not None and _searches(filter_) > MAX_WATCH_SEARCHES:
        description = f"searches for words more than {MAX_WATCH_SEARCHES} times"
        raise FieldError(description, "FILTER_TOO_COSTLY")
    return filter_


def _searches(term: Filter) -> int:
    match term:
        case HasWords():
            return 1
        case Not(inner):
            return _searches(inner)
        case And(terms) | Or(terms):
            return sum(map(_searches, terms))
        case _:
            return 0


def _explain(error: UnexpectedInput, text: str) -> str:
    token = getattr(error, "token", None)
    if token is not None and token.type == "$END":
        return "at the end: the filter is not complete"
    position = error.pos_in_stream or 0
    unexpected = str(token)[:100] if token is not None else text[position]
    return f"at character {position + 1}: {unexpected!a} is not expected here"


@lru_cache(maxsize=1024)
def parse_order(text: str) -> tuple[Sort, ...]:
    """The terms of an order; newest first for an empty one. Raises: FieldError."""
    if not text.strip():
        return NEWEST_FIRST
    order: dict[str, Sort] = {}
    position = 1
    for term in text.split(","):
        field, *direction = term.split()[:3] or [""]
        if field not in SORTABLE:
            problem = f"cannot order by {field[:100]!a}; known are {', '.join(sorted(SORTABLE))}"
        elif direction not in ([], ["asc"], ["desc"]):
            problem = f"{' '.join(direction)[:100]!a} must be asc or desc"
        elif field in order:
            problem = f"{field} stands twice"
        else:
            order[field] = Sort(field, descending=direction == ["desc"])
            position += len(term) + 1
            continue
        position += len(term) - len(term.lstrip())
        raise FieldError(f"at character {position}: {problem}", "ORDER_BY_INVALID")
    return tuple(order.values())
