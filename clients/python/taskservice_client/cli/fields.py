"""The options that set fields of a task."""

import datetime as dt
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import typer

from taskservice_client import Task
from taskservice_client.cli.command import Session
from taskservice_client.cli.exits import CommandError, ExitCode
from taskservice_client.requests import assign


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


@dataclass(frozen=True, kw_only=True)
class Fields(Session):
    """The options of commands that write fields; those that are not given are None."""

    description: str | None = None
    status: Annotated[Status | None, typer.Option("--status", case_sensitive=False)] = None
    priority: Annotated[Priority | None, typer.Option("--priority", case_sensitive=False)] = None
    assigned_to: str | None = None
    due_date: Annotated[
        dt.datetime | None,
        typer.Option(parser=time, metavar="TIME", help="Such as 2030-01-31 or 2030-01-31T12:00Z."),
    ] = None
    tag: Annotated[list[str] | None, typer.Option(help="A tag; repeat it for more.")] = None

    def apply(self, task: Task) -> None:
        """Set the fields that are given."""
        names = "description", "status", "priority", "assigned_to", "due_date"
        given = {name: getattr(self, name) for name in names} | {"tags": self.tag}
        assign(task, {name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True, kw_only=True)
class Changes(Fields):
    """The options of `update`, which changes a task that exists."""

    title: str | None = None
    no_due_date: Annotated[bool, typer.Option("--no-due-date", help="Remove it.")] = False
    add_tag: Annotated[list[str] | None, typer.Option(help="Add a tag to the others.")] = None
    remove_tag: Annotated[list[str] | None, typer.Option(help="Remove a tag.")] = None
    etag: Annotated[str, typer.Option(help="Write only if the task has this etag.")] = ""

    def apply(self, task: Task) -> None:
        """Change the task in place. Raises: CommandError if it has another etag."""
        if self.etag and task.etag != self.etag:
            message = f"the task has the etag {task.etag}: it was written since"
            raise CommandError(message, ExitCode.CONFLICT)
        super().apply(task)
        task.title = task.title if self.title is None else self.title
        if self.no_due_date:
            task.ClearField("due_date")
        added = [tag for tag in self.add_tag or [] if tag not in task.tags]
        removed = {tag.lower() for tag in self.remove_tag or []}
        task.tags[:] = [tag for tag in [*task.tags, *added] if tag.lower() not in removed]
