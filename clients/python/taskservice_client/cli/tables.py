"""Draw tasks, counts and histories as tables for people."""

import datetime as dt
from collections.abc import Iterable, Sequence

from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Value
from google.protobuf.timestamp_pb2 import Timestamp
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from taskservice_client import Task, TaskEvent, TaskPriority, TaskStats, TaskStatus, WatchEvent
from taskservice_client.cli.contexts import Contexts

BAR_WIDTH = 40

_STYLES = {
    "PENDING": "yellow",
    "IN_PROGRESS": "cyan",
    "COMPLETED": "green",
    "CANCELLED": "bright_black",
    "URGENT": "bold red",
    "HIGH": "red",
    "LOW": "bright_black",
    "ADDED": "green",
    "MODIFIED": "cyan",
    "DELETED": "red",
    "CREATED": "green",
    "UPDATED": "cyan",
    "UNDELETED": "yellow",
}


def status_name(status: TaskStatus.ValueType) -> str:
    return TaskStatus.Name(status).removeprefix("TASK_STATUS_")


def priority_name(priority: TaskPriority.ValueType) -> str:
    return TaskPriority.Name(priority).removeprefix("TASK_PRIORITY_")


def styled(name: str) -> Text:
    """Colour the name of a status, a priority or a kind of event."""
    return Text(name, style=_STYLES.get(name, ""))


def local_time(time: Timestamp, timespec: str = "minutes") -> str:
    """Format a time in the zone of the terminal."""
    return time.ToDatetime(dt.UTC).astimezone().replace(tzinfo=None).isoformat(" ", timespec)


def due(task: Task) -> Text:
    """Format the due date, in red if an open task is past it."""
    if not task.HasField("due_date"):
        return Text()
    is_open = status_name(task.status) in {"PENDING", "IN_PROGRESS"}
    is_past = task.due_date.ToDatetime(dt.UTC) < dt.datetime.now(dt.UTC)
    return Text(local_time(task.due_date), style="bold red" if is_open and is_past else "")


def task_table(tasks: Iterable[Task]) -> Table:
    """Draw one task in each row."""
    table = _table("id", "title", "status", "priority", "assigned to", "due", "tags")
    table.columns[0].no_wrap = True
    for task in tasks:
        table.add_row(
            Text(task.id, style="strike" if task.HasField("deleted_at") else "bright_black"),
            task.title,
            styled(status_name(task.status)),
            styled(priority_name(task.priority)),
            task.assigned_to,
            due(task),
            ", ".join(task.tags),
        )
    return table


def task_details(task: Task) -> Table:
    """Draw one field of a task in each row."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bright_black", no_wrap=True)
    table.add_column(overflow="fold")
    for field, value in task.ListFields():
        table.add_row(field.name, _value_of(task, field.name, value))
    return table


def stats_table(stats: TaskStats) -> RenderableType:
    """Draw the counts by status and by priority as bars."""
    statuses = [(status_name(item.status), item.count) for item in stats.by_status]
    priorities = [(priority_name(item.priority), item.count) for item in stats.by_priority]
    summary = Text.assemble(
        (str(stats.total), "bold"),
        f" tasks at {local_time(stats.as_of)}, ",
        (f"{stats.overdue} overdue", "bold red" if stats.overdue else ""),
    )
    return Group(summary, Text(), _bars("status", statuses), Text(), _bars("priority", priorities))


def history_table(events: Iterable[TaskEvent]) -> Table:
    """Draw each event with its changes, one field in a line: before → after."""
    table = _table("time", "principal", "event", "changes")
    table.columns[0].no_wrap = True
    for event in events:
        kind = TaskEvent.Type.Name(event.type).removeprefix("TYPE_")
        changes = Text("\n").join(map(_change, event.changes))
        time = local_time(event.occurred_at, "seconds")
        table.add_row(time, event.principal, styled(kind), changes)
    return table


def watch_line(event: WatchEvent) -> Text:
    """Draw an event of a watch in one line."""
    task, kind = event.task, event.type.value
    if not task.id:
        return Text(kind, style="bold red")
    status, priority = status_name(task.status), priority_name(task.priority)
    parts = [
        (local_time(task.updated_at, "seconds"), ""),
        (f"{kind:<8}", _STYLES[kind]),
        (task.id, "bright_black"),
        (f"{status:<11}", _STYLES[status]),
        (f"{priority:<6}", _STYLES.get(priority, "")),
        (task.title, ""),
    ]
    return Text("  ").join(Text(text, style=style) for text, style in parts)


def context_table(contexts: Contexts) -> Table:
    """Draw one context in each row, with an asterisk before the one in use."""
    table = _table("", "name", "address", "other options")
    for name, options in contexts.contexts.items():
        others = [f"{key} = {value}" for key, value in options.items() if key != "address"]
        mark = "*" if name == contexts.current else ""
        table.add_row(mark, name, options.get("address"), "\n".join(others))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _value_of(task: Task, name: str, value: object) -> Text:
    if name == "status":
        return styled(status_name(task.status))
    if name == "priority":
        return styled(priority_name(task.priority))
    if isinstance(value, Timestamp):
        return due(task) if name == "due_date" else Text(local_time(value, "seconds"))
    return Text(", ".join(task.tags) if name == "tags" else str(value))


def _bars(title: str, counts: Sequence[tuple[str, int]]) -> Table:
    """Draw a bar for each count, the longest over the whole width."""
    longest = max((count for _, count in counts), default=0) or 1
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(title, no_wrap=True, min_width=11)
    table.add_column("tasks", justify="right")
    table.add_column("")
    for name, count in counts:
        bar = Text("█" * round(BAR_WIDTH * count / longest), style=_STYLES.get(name, ""))
        table.add_row(styled(name), str(count), bar)
    return table


def _change(change: TaskEvent.Change) -> Text:
    before, after = (_shown(change.field, value) for value in (change.before, change.after))
    return Text.assemble(
        f"{change.field}: ", (before, "red"), (" → ", "bright_black"), (after, "green")
    )


def _shown(field: str, value: Value) -> str:
    """Return a value of a change as text: enum values by their short name, lists with commas."""
    plain: object = MessageToDict(value) if value.WhichOneof("kind") else ""
    if isinstance(plain, list):
        return ", ".join(map(str, plain)) or "-"
    return str(plain).removeprefix(f"TASK_{field.upper()}_") or "-"
