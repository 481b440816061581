"""Any valid task is the same after an export and an import."""

import datetime as dt
from pathlib import Path
from uuid import uuid4

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cli.conftest import Tasks
from cli.transfers import settable
from taskservice_client import Task, TaskClient, TaskPriority, TaskStatus

# All but control characters and surrogates; what the service accepts in every text.
ONE_LINE = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=30)
LINES = st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t"))
FUTURE = st.datetimes(dt.datetime(2200, 1, 1), dt.datetime(9999, 12, 31))  # noqa: DTZ001


@st.composite
def valid_tasks(draw: st.DrawFn, tag: str) -> Task:
    """Draw a task with every field that a caller may set, each at its limits or empty."""
    task = Task(
        title="x" + draw(ONE_LINE),  # Not blank.
        description=draw(LINES),
        status=draw(st.sampled_from(TaskStatus.values()[1:])),
        priority=draw(st.sampled_from(TaskPriority.values()[1:])),
        assigned_to=draw(ONE_LINE),
        tags=[tag, *("x" + text for text in draw(st.lists(ONE_LINE, max_size=9)))],
    )
    if due := draw(st.none() | FUTURE):
        task.due_date.FromDatetime(due)
    return task


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_round_trip_keeps_what_a_caller_may_set(
    tasks: Tasks, client: TaskClient, other_address: str, tmp_path: Path, data: st.DataObject
) -> None:
    tag = uuid4().hex
    created = client.create_many(data.draw(st.lists(valid_tasks(tag), min_size=1, max_size=20)))
    there, back = tmp_path / f"{tag}.jsonl", tmp_path / f"{tag}-back.jsonl"
    assert tasks("export", str(there), "--tag", tag).code == 0
    assert tasks("import", str(there), "--address", other_address).code == 0
    assert tasks("export", str(back), "--tag", tag, "--address", other_address).code == 0
    assert len(settable(there.read_text().split("\n")[:-1])) == len(created)
    assert settable(back.read_text().split("\n")[:-1]) == settable(
        there.read_text().split("\n")[:-1]
    )
    assert tasks("import", str(back)).errors == f"0 created, {len(created)} unchanged\n"
