"""Parse filters (AIP-160) into trees of `storage.query`.

`filter.lark` is the grammar, `filter_fields.py` the list of fields. An invalid filter raises a
FieldError with the position in the text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import cache, lru_cache
from itertools import chain
from typing import NamedTuple, NoReturn, TypeVar

from lark import Lark, Token, Transformer, UnexpectedInput, v_args

from server.calls.text import is_blank
from server.tasks.filter_fields import ENUM_FIELDS, ENUMS, FIELDS, Field, parse_text
from server.tasks.validation import FieldError
from storage.query import (
    And,
    Comparison,
    Filter,
    HasTag,
    HasWords,
    Not,
    Or,
    Present,
)

T = TypeVar("T")

MAX_TERMS, MAX_DEPTH = 50, 20
# No index serves a negated search: each one reads every task.
MAX_SEARCHES = 10
# No index serves searches in new changes.
MAX_WATCH_SEARCHES = 5
# PostgreSQL's limit is 2046 bytes in lower case, which may be longer.
MAX_WORD_BYTES = 1000

# Operators of other languages, and their form in AIP-160.
_FOREIGN_OPERATORS = {"and": "AND", "or": "OR", "not": "NOT", "&&": "AND", "||": "OR"}
_OR_QUOTE = "or quote it to search for the text"
_NO_CALLS = "there are no functions; put a space before a parenthesis that groups terms"
_NO_WILDCARDS = (
    "a * in place of other text is for searches only, such as title:Send*; "
    "write \\* in quotes for a star itself"
)

# Word boundaries: white space, punctuation, and each character of the scripts without spaces.
_WORD_EDGES = re.compile(
    r"[\s!-/:-@\[-`{-~\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2000-\u206f\u2e80-\u30ff"
    r"\u3400-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U000323af]"
)


class _Argument(NamedTuple):
    """A value without its quotes and escapes, and its position in the filter."""

    text: str
    start: int
    is_quoted: bool
    begins_with_star: bool
    ends_with_star: bool


class _Part(NamedTuple):
    """A part of the tree during parsing, with the numbers that the limits apply to."""

    node: Filter
    start: int
    depth: int = 0
    terms: int = 1
    searches: int = 0
    bare_words: tuple[_Argument, ...] = ()
    """Unquoted words, which may be misplaced enum values."""
    has_enums: bool = False


@v_args(inline=True)
class _TreeBuilder(Transformer[Token, Filter]):
    """Converts each rule of the grammar to a part of the tree."""

    def start(self, part: _Part) -> Filter:
        for word in part.bare_words if part.has_enums else ():
            if field := ENUM_FIELDS.get(word.text):
                _reject(
                    word.start, f"{word.text} is a value: write {field} = {word.text}, {_OR_QUOTE}"
                )
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
        if part.depth == MAX_DEPTH:
            problem = f"nested deeper than {MAX_DEPTH}"
            _reject(part.start, problem, "FILTER_TOO_DEEP")
        return part._replace(depth=part.depth + 1)

    def argument(self, token: Token) -> _Argument:
        """Remove quotes and escapes; an unescaped star at either end is a wildcard."""
        is_quoted = token.type == "STRING"
        written = re.findall(r"\\.|[^\\]", token[1:-1], re.DOTALL) if is_quoted else list(token)
        text = "".join(character[-1] for character in written)
        start, begin, end = token.start_pos or 0, written[:1], written[-1:]
        return _Argument(text, start, is_quoted, begin == ["*"], end == ["*"])

    def words(self, argument: _Argument) -> _Part:
        if not argument.is_quoted:
            _reject_foreign_operators(argument)
        bare = () if argument.is_quoted else (argument,)
        return _Part(_search(argument), argument.start, searches=1, bare_words=bare)

    def call(self, token: Token) -> _Part:
        _reject(token.start_pos, _NO_CALLS)

    def comparison(self, name: Token, operator: Token, argument: _Argument) -> _Part:
        field = FIELDS.get(name)
        if field is None:
            _reject(name.start_pos, _no_field(name))
        if operator == ":":
            node = _has(name, field, operator, argument)
            return _Part(node, name.start_pos or 0, searches=int(isinstance(node, HasWords)))
        if operator not in field.operators:
            _reject(operator.start_pos, f"{name} does not support the operator {operator}")
        comparison = Comparison(str(name), str(operator), _value(argument, field.parse))
        return _Part(comparison, name.start_pos or 0, has_enums=name in ENUMS)

    def _joined(self, kind: type[And | Or], parts: tuple[_Part | Token, ...]) -> _Part:
        joined = [part for part in parts if isinstance(part, _Part)]
        if len(joined) == 1:
            return joined[0]
        terms = searches = 0
        for part in joined:
            terms += part.terms
            searches += part.searches
            if terms > MAX_TERMS:
                problem = f"more than {MAX_TERMS} terms"
                _reject(part.start, problem, "FILTER_TOO_LONG")
            if searches > MAX_SEARCHES:
                problem = f"more than {MAX_SEARCHES} terms that search for words"
                _reject(part.start, problem, "FILTER_TOO_COSTLY")
        return _Part(
            kind(tuple(part.node for part in joined)),
            joined[0].start,
            max(part.depth for part in joined),
            terms,
            searches,
            tuple(chain.from_iterable(part.bare_words for part in joined)),
            any(part.has_enums for part in joined),
        )


def _has(name: Token, field: Field, operator: Token, argument: _Argument) -> Filter:
    if not argument.is_quoted and argument.text == "*" and field.presence:
        return Present(str(name))
    if field.is_searched:
        return _search(argument, str(name))
    if name != "tags":
        _reject(operator.start_pos, f"{name} does not support the operator :")
    return HasTag(_value(argument, parse_text))


def _search(argument: _Argument, field: str | None = None) -> HasWords:
    """Build a search for the words of the argument; a star after the last one makes it a prefix."""
    _value(argument._replace(begins_with_star=False, ends_with_star=False), parse_text)
    is_prefix = argument.ends_with_star
    words = argument.text[:-1] if is_prefix else argument.text
    if not any(map(_is_in_word, words)):
        _reject(argument.start, f"{_shown(argument.text)} has no letter or digit to search for")
    if argument.begins_with_star or (is_prefix and not _is_in_word(words[-1])):
        problem = "a * must follow a letter or digit, to search for a prefix"
        _reject(argument.start, f"{_shown(argument.text)}: {problem}")
    if any(len(word.encode()) > MAX_WORD_BYTES for word in _WORD_EDGES.split(words)):
        _reject(argument.start, f"{_shown(argument.text)} is too long a word to search for")
    return HasWords(words, field, is_prefix)


def _is_in_word(character: str) -> bool:
    return unicodedata.category(character)[0] in "LNM"


def _value(argument: _Argument, parse: Callable[[str], T]) -> T:
    if argument.begins_with_star or argument.ends_with_star:
        _reject(argument.start, f"{_shown(argument.text)}: {_NO_WILDCARDS}")
    try:
        return parse(argument.text)
    except ValueError as error:
        _reject(argument.start, f"{_shown(argument.text)} {error}")


def _no_field(name: str) -> str:
    """Describe an unknown field; the last part of a path may be a known one."""
    hint = name.rpartition(".")[2].lower()
    hint = f"; write {hint}" if hint in FIELDS else ""
    return f"there is no field {_shown(name)}; known are {', '.join(FIELDS)}{hint}"


def _reject_foreign_operators(argument: _Argument) -> None:
    for operator, meant in _FOREIGN_OPERATORS.items():
        is_word = operator.isalpha()
        if argument.text.lower() == operator if is_word else operator in argument.text:
            spelling = f"{meant} in capitals" if is_word else meant
            _reject(argument.start, f"{_shown(argument.text)}: write {spelling}, {_OR_QUOTE}")


def _shown(text: str) -> str:
    return f"{text[:100]!a}"


def _reject(start: int | None, description: str, reason: str = "FILTER_INVALID") -> NoReturn:
    raise FieldError(f"at character {(start or 0) + 1}: {description}", reason)


@cache
def _parser() -> Lark:
    builder = _TreeBuilder()
    return Lark.open(
        "filter.lark", rel_to=__file__, parser="lalr", lexer="basic", transformer=builder
    )


@lru_cache(maxsize=1024)
def parse_filter(text: str) -> Filter | None:
    """Parse a filter; return None if it is blank. Raises: FieldError."""
    if is_blank(text):
        return None
    try:
        return _parser().parse(text)  # type: ignore[return-value]
    except UnexpectedInput as error:
        raise FieldError(_explain(error, text), "FILTER_INVALID") from None


def parse_watch_filter(text: str) -> Filter | None:
    """Parse the filter of a watch, which every change is compared with. Raises: FieldError."""
    filter_ = parse_filter(text)
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
    if token is not None and token.type == "CALL":
        return f"at character {position + 1}: {_NO_CALLS}"
    unexpected = str(token) if token is not None else text[position]
    hint = _HINTS.get(unexpected, "")
    return f"at character {position + 1}: {_shown(unexpected)} is not expected here{hint}"


_HINTS = {
    "(": "; write a comparison for each value, such as status = PENDING OR status = COMPLETED",
    ",": "; write AND or OR",
    "!": "; write NOT or -",
    "=": "; quote a text that has this character",
}
