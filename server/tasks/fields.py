"""Define the fields that filters may compare and lists may be ordered by."""

import datetime as dt
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

from server.tasks.validation import UUID, FieldError
from storage.query import NEWEST_FIRST, Sort, Value
from taskservice.v1.task_pb2 import TaskPriority, TaskStatus

_EQUALITY = frozenset({"=", "!="})
_ORDER = _EQUALITY | {"<", "<=", ">", ">="}

_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII)


class Field(NamedTuple):
    """The operators of a field, and the parser of its values."""

    operators: frozenset[str]
    parse: Callable[[str], Value]
    is_searched: bool = False
    presence: bool = True


def _parse_enum(items: Sequence[tuple[str, int]], prefix: str) -> Callable[[str], int]:
    numbers = {name.removeprefix(prefix): number for name, number in items if number != 0}

    def parse(text: str) -> int:
        name = text.removeprefix(prefix)
        if name not in numbers:
            raise ValueError(f"must be one of {', '.join(numbers)}")
        return numbers[name]

    return parse


def parse_text(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not contain the NUL character")
    return text


def _parse_uuid(text: str) -> str:
    if not UUID.fullmatch(text):
        raise ValueError("must be a UUID")
    return text


def _parse_time(text: str) -> dt.datetime:
    """Parse an RFC 3339 timestamp; a leap second is the first second of the next minute."""
    date, second, rest = text[:17], text[17:19], text[19:]
    written = f"{date}{'59' if second == '60' else second}{rest}".upper()
    try:
        time = dt.datetime.fromisoformat(written if _RFC_3339.fullmatch(written) else "")
        time = time.astimezone(dt.UTC)  # PostgreSQL supports fewer offsets than RFC 3339.
    except (ValueError, OverflowError):
        raise ValueError('must be an RFC 3339 timestamp such as "2027-01-31T12:00:00Z"') from None
    return _after_leap_second(time) if second == "60" else time


def _after_leap_second(time: dt.datetime) -> dt.datetime:
    next_minute = time + dt.timedelta(seconds=1)
    if (next_minute.day, next_minute.hour, next_minute.minute) != (1, 0, 0):
        raise ValueError("has a second 60, which only the last minute of a month in UTC can have")
    return next_minute


FIELDS: dict[str, Field] = {
    "id": Field(_EQUALITY, _parse_uuid),
    "title": Field(_EQUALITY, parse_text, is_searched=True),
    "description": Field(_EQUALITY, parse_text, is_searched=True),
    "status": Field(_EQUALITY, _parse_enum(TaskStatus.items(), "TASK_STATUS_"), presence=False),
    "priority": Field(_ORDER, _parse_enum(TaskPriority.items(), "TASK_PRIORITY_"), presence=False),
    "assigned_to": Field(_EQUALITY, parse_text),
    "created_by": Field(_EQUALITY, parse_text),
    "tags": Field(frozenset(), parse_text),
    **{
        name: Field(_ORDER, _parse_time)
        for name in ("due_date", "created_at", "updated_at", "completed_at", "deleted_at")
    },
}

ENUMS = ("status", "priority")
ENUM_FIELDS = {
    spelling: field
    for field, enum in zip(ENUMS, (TaskStatus, TaskPriority), strict=True)
    for name, number in enum.items()
    if number != 0
    for spelling in (name, name.removeprefix(f"TASK_{field.upper()}_"))
}

# Fields with an index.
SORTABLE = "created_at", "updated_at", "due_date", "priority", "status", "assigned_to", "title"


@lru_cache(maxsize=1024)
def parse_order(text: str) -> tuple[Sort, ...]:
    """Parse an order; return newest first if it is empty. Raises: FieldError."""
    if not text.strip():
        return NEWEST_FIRST
    order: dict[str, Sort] = {}
    end = 0
    for term in text.split(","):
        start = end + len(term) - len(term.lstrip()) + 1
        end += len(term) + 1
        field, *direction = term.split()[:3] or [""]
        if field not in SORTABLE:
            problem = f"cannot order by {field[:100]!a}; known are {', '.join(sorted(SORTABLE))}"
        elif direction not in ([], ["asc"], ["desc"]):
            problem = f"{' '.join(direction)[:100]!a} must be asc or desc"
        elif field in order:
            problem = f"{field} occurs twice"
        else:
            order[field] = Sort(field, descending=direction == ["desc"])
            continue
        raise FieldError(f"at character {start}: {problem}", "ORDER_BY_INVALID")
    return tuple(order.values())
