"""Build a filter of the contract (AIP-160) from the options of a command."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from taskservice_client.cli.command import Session
from taskservice_client.cli.fields import Priority, Status


@dataclass(frozen=True, kw_only=True)
class Selection(Session):
    """The options of commands that select tasks."""

    filter: Annotated[
        str, typer.Option("--filter", "-f", help="For example: priority >= HIGH AND due_date:*")
    ] = ""
    status: Annotated[
        list[Status] | None,
        typer.Option("--status", case_sensitive=False, help="Any of these statuses."),
    ] = None
    priority: Annotated[
        list[Priority] | None,
        typer.Option("--priority", case_sensitive=False, help="Any of these priorities."),
    ] = None
    assigned_to: Annotated[
        str | None, typer.Option("--assigned-to", help="This assignee; '' for none.")
    ] = None
    tag: Annotated[list[str] | None, typer.Option("--tag", help="All of these tags.")] = None

    @property
    def expression(self) -> str:
        """Return the filter that all options give together."""
        terms = [either("status", self.status or []), either("priority", self.priority or [])]
        if self.assigned_to is not None:
            terms.append(f"assigned_to = {quoted(self.assigned_to)}")
        terms += [f"tags:{quoted(tag)}" for tag in self.tag or []]
        return all_of([in_parentheses(self.filter) if any(terms) else self.filter, *terms])


def quoted(text: str) -> str:
    """Quote a value: in quotes, a backslash escapes quotes, backslashes and asterisks."""
    return '"' + re.sub(r'(["\\*])', r"\\\1", text) + '"'


def in_parentheses(expression: str) -> str:
    return f"({expression})" if expression.strip() else ""


def either(field: str, values: Sequence[str]) -> str:
    """Match any of the values."""
    return in_parentheses(" OR ".join(f"{field} = {value}" for value in values))


def all_of(terms: Iterable[str]) -> str:
    """Match all of the terms that are not empty."""
    return " AND ".join(filter(None, terms))
