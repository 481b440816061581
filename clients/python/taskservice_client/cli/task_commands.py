"""The commands that read and write tasks by their ids."""

from itertools import islice
from typing import Annotated

import typer

from taskservice_client import DeleteTaskRequest, Task, TaskStatus
from taskservice_client.cli.command import Session, command
from taskservice_client.cli.exits import CommandError
from taskservice_client.cli.fields import Changes, Fields
from taskservice_client.cli.filters import Selection
from taskservice_client.cli.output import Format, show, show_all
from taskservice_client.cli.tables import task_details, task_table

app = typer.Typer()

LIMIT_OF_TABLES = 50
MAX_IDS = 1000  # The items of a batch.


def _in_one_batch(ids: list[str]) -> list[str]:
    """Refuse more ids than one batch has. Raises: BadParameter."""
    if len(ids) > MAX_IDS:
        raise typer.BadParameter(f"{len(ids)} ids, but at most {MAX_IDS} are written together")
    return ids


Id = Annotated[str, typer.Argument(help="The id of a task.")]
Ids = Annotated[
    list[str],
    typer.Argument(
        callback=_in_one_batch, help=f"Up to {MAX_IDS} ids of tasks; all are written, or none."
    ),
]
Etag = Annotated[str, typer.Option(help="Write only if the task has this etag.")]


@command(app, "list")
def list_(
    session: Selection,
    order_by: Annotated[str, typer.Option(help="For example: priority desc, due_date")] = "",
    show_deleted: Annotated[bool, typer.Option("--show-deleted", help="Also deleted ones.")] = (
        False
    ),
    limit: Annotated[
        int | None,
        typer.Option(min=1, help=f"{LIMIT_OF_TABLES} in a table, all for programs, by default."),
    ] = None,
) -> None:
    """List tasks."""
    in_table = session.form is Format.TABLE
    limit = limit or (LIMIT_OF_TABLES if in_table else None)
    page_size = min(limit + 1, 1000) if limit else 1000
    with session.connect() as client:
        tasks = client.list(
            session.expression, order_by=order_by, show_deleted=show_deleted, page_size=page_size
        )
        show_all(session.form, islice(tasks, limit), task_table)
        if in_table and next(tasks, None):
            session.note(f"More than {limit} tasks match: see --limit.")


@command(app, "get")
def get(session: Session, id: Id) -> None:
    """Show a task, deleted or not."""
    with session.connect() as client:
        show(session.form, client.get(id), task_details)


@command(app, "create")
def create(
    session: Fields,
    title: Annotated[str, typer.Argument(help="The title.")],
    id: Annotated[str, typer.Option(help="A UUID; by default the service makes one.")] = "",
    validate_only: Annotated[
        bool, typer.Option("--validate-only", help="Check the task, and create nothing.")
    ] = False,
) -> None:
    """Create a task."""
    task = Task(title=title)
    session.apply(task)
    with session.connect() as client:
        created = client.create(task, task_id=id, validate_only=validate_only)
    show(session.form, created, task_details)


@command(app, "update")
def update(session: Changes, id: Id) -> None:
    """Change the fields of a task that options name; '' clears a text."""
    with session.connect() as client:
        show(session.form, client.update(id, session.apply), task_details)


@command(app, "done")
def done(session: Session, ids: Ids) -> None:
    """Complete tasks."""
    with session.connect() as client:
        tasks = [Task(id=id_, status=TaskStatus.TASK_STATUS_COMPLETED) for id_ in ids]
        show_all(session.form, client.update_many(tasks), task_table)


@command(app, "delete")
def delete(
    session: Session,
    ids: Ids,
    etag: Etag = "",
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Ignore tasks that do not exist.")
    ] = False,
) -> None:
    """Delete tasks; they can be undeleted until they are purged."""
    if etag and len(ids) > 1:
        raise CommandError("--etag needs a single task")
    deletions = [DeleteTaskRequest(id=id_, etag=etag, allow_missing=allow_missing) for id_ in ids]
    with session.connect() as client:
        show_all(session.form, client.delete_many(deletions), task_table)


@command(app, "undelete")
def undelete(session: Session, id: Id, etag: Etag = "") -> None:
    """Undelete a task."""
    with session.connect() as client:
        show(session.form, client.undelete(id, etag=etag), task_details)
