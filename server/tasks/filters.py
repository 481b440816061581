"""Parse filters (AIP-160) into trees of `storage.query`; `filter.lark` is the grammar."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, lru_cache
from itertools import accumulate, chain
from typing import NamedTuple, NoReturn, TypeVar, cast

from lark import Lark, Token, Transformer, UnexpectedInput, v_args

from server.calls.text import is_blank
from server.tasks.fields import ENUM_FIELDS, ENUMS, FIELDS, Field, parse_text
from server.tasks.validation import FieldError
from storage.query import And, Comparison, Filter, HasTag, HasWords, Not, Or, Present

T = TypeVar("T")

MAX_TERMS, MAX_DEPTH = 50, 20
_NESTING = {"(": 1, ")": -1}
MAX_SEARCHES = 10  # No index serves a negated search: each one reads every task.
MAX_WATCH_SEARCHES = 5  # No index serves searches in new changes.
MAX_WORD_BYTES = 1000  # PostgreSQL's limit is 2046 bytes in lower case, which may be longer.

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


@v_args(inline=True)
class _TreeBuilder(Transformer[Token, Filter]):
    """Converts each rule of the grammar to a part of the tree."""

    negated = Not

    def conjunction(self, *terms: Filter) -> Filter:
        return And(terms)

    def disjunction(self, *terms: Filter) -> Filter:
        return Or(terms)

    def argument(self, token: Token) -> _Argument:
        """Remove quotes and escapes; an unescaped star at either end is a wildcard."""
        is_quoted = token.type == "STRING"
        written = re.findall(r"\\.|[^\\]", token[1:-1], re.DOTALL) if is_quoted else list(token)
        text = "".join(character[-1] for character in written)
        start, begin, end = token.start_pos or 0, written[:1], written[-1:]
        return _Argument(text, start, is_quoted, begin == ["*"], end == ["*"])

    def words(self, argument: _Argument) -> Filter:
        if not argument.is_quoted:
            _reject_foreign_operators(argument)
        return _search(argument)

    def call(self, token: Token) -> Filter:
        _reject(token.start_pos, _NO_CALLS)

    def comparison(self, name: Token, operator: Token, argument: _Argument) -> Filter:
        field = FIELDS.get(name)
        if field is None:
            # The last part of a path may be a known field.
            known = name.rpartition(".")[2].lower()
            hint = f"; write {known}" if known in FIELDS else ""
            problem = f"there is no field {_shown(name)}; known are {', '.join(FIELDS)}{hint}"
            _reject(name.start_pos, problem)
        if operator == ":":
            return _has(name, field, operator, argument)
        if operator not in field.operators:
            _reject(operator.start_pos, f"{name} does not support the operator {operator}")
        return Comparison(str(name), str(operator), _value(argument, field.parse))


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


def _reject_foreign_operators(argument: _Argument) -> None:
    for operator, meant in _FOREIGN_OPERATORS.items():
        is_word = operator.isalpha()
        if argument.text.lower() == operator if is_word else operator in argument.text:
            spelling = f"{meant} in capitals" if is_word else meant
            _reject(argument.start, f"{_shown(argument.text)}: write {spelling}, {_OR_QUOTE}")


def _shown(text: str) -> str:
    return f"{text[:100]!a}"


def _reject(start: int | None, description: str) -> NoReturn:
    raise FieldError(f"at character {(start or 0) + 1}: {description}", "FILTER_INVALID")


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
        filter_ = cast(Filter, _parser().parse(text))
        _check_tokens(list(_parser().lex(text)))
    except UnexpectedInput as error:
        raise FieldError(_explain(error, text), "FILTER_INVALID") from None
    terms = list(_terms(filter_))
    if len(terms) > MAX_TERMS:
        raise FieldError(f"has more than {MAX_TERMS} terms", "FILTER_TOO_LONG")
    _check_searches(terms, MAX_SEARCHES)
    return filter_


def parse_watch_filter(text: str) -> Filter | None:
    """Parse the filter of a watch, which every change is compared with. Raises: FieldError."""
    filter_ = parse_filter(text)
    if filter_ is not None:
        _check_searches(_terms(filter_), MAX_WATCH_SEARCHES)
    return filter_


def _check_tokens(tokens: Sequence[Token]) -> None:
    """Limit the nesting, and reject values of enums that stand where words are searched for."""
    if max(accumulate(_NESTING.get(token, 0) for token in tokens), default=0) > MAX_DEPTH:
        raise FieldError(f"is nested deeper than {MAX_DEPTH}", "FILTER_TOO_DEEP")
    comparators = {n for n, token in enumerate(tokens) if token.type == "COMPARATOR"}
    if not any(tokens[n - 1] in ENUMS for n in comparators):
        return
    for n, token in enumerate(tokens):
        field = ENUM_FIELDS.get(token)
        if field and comparators.isdisjoint({n - 1, n + 1}):
            hint = f"{token} is a value: write {field} = {token}, {_OR_QUOTE}"
            _reject(token.start_pos, hint)


def _terms(filter_: Filter) -> Iterator[Filter]:
    """Yield the terms that And, Or and Not combine."""
    match filter_:
        case Not(inner):
            yield from _terms(inner)
        case And(inner) | Or(inner):
            yield from chain.from_iterable(map(_terms, inner))
        case _:
            yield filter_


def _check_searches(terms: Iterable[Filter], limit: int) -> None:
    if sum(isinstance(term, HasWords) for term in terms) > limit:
        description = f"has more than {limit} terms that search for words"
        raise FieldError(description, "FILTER_TOO_COSTLY")


def _explain(error: UnexpectedInput, text: str) -> str:
    token = getattr(error, "token", None)
    if token is not None and token.type == "$END":
        return "at the end: the filter is not complete"
    position = error.pos_in_stream or 0
    unexpected = str(token) if token is not None else text[position]
    problem = f"{_shown(unexpected)} is not expected here{_HINTS.get(unexpected, '')}"
    if token is not None and token.type == "CALL":
        problem = _NO_CALLS
    return f"at character {position + 1}: {problem}"


_HINTS = {
    "(": "; write a comparison for each value, such as status = PENDING OR status = COMPLETED",
    ",": "; write AND or OR",
    "!": "; write NOT or -",
    "=": "; quote a text that has this character",
}
