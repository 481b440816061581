"""The values that options take: names of statuses and priorities, and times."""

import datetime as dt
from enum import StrEnum
from typing import Annotated

import typer


class Status(StrEnum):
    """The statuses, by their short names."""

    PENDING = "PENDING"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    CANCELLED = "CANCELLED"


class Priority(StrEnum):
    """The priorities, by their short names."""

    LOW = "LOW"
    MEDIUM = "MEDIUM"
    HIGH = "HIGH"
    URGENT = "URGENT"


def time(text: str) -> dt.datetime:
    """Parse a date or a time of ISO 8601; without an offset it is local."""
    try:
        return dt.datetime.fromisoformat(text).astimezone()
    except ValueError as error:
        message = f"{text!r} is no time such as 2030-01-31 or 2030-01-31T12:00:00Z"
        raise typer.BadParameter(message) from error


StatusOption = Annotated[Status | None, typer.Option("--status", case_sensitive=False)]
PriorityOption = Annotated[Priority | None, typer.Option("--priority", case_sensitive=False)]
DueDateOption = Annotated[
    dt.datetime | None,
    typer.Option(
        "--due-date", parser=time, metavar="TIME", help="Such as 2030-01-31 or 2030-01-31T12:00Z."
    ),
]
