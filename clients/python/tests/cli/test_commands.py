"""Each command does what it says, on a real service."""

import json
from uuid import uuid4

import pytest

from cli.conftest import Tasks
from taskservice_client import TaskClient, TaskNotFound, TaskPriority, TaskStatus


@pytest.fixture
def tag() -> str:
    """A tag for the tasks of one test, which share the service with others."""
    return uuid4().hex


def test_create_sets_every_field_that_a_caller_may_set(tasks: Tasks, client: TaskClient) -> None:
    id_ = str(uuid4())
    result = tasks(
        *["create", "Send the invoices", "--id", id_, "--description", "all of them"],
        *["--status", "in_progress", "--priority", "HIGH", "--assigned-to", "ann"],
        *["--due-date", "2099-01-31T12:00+01:00", "--tag", "billing", "--tag", "monthly"],
    )
    assert result.code == 0
    task = client.get(id_)
    assert (task.title, task.description) == ("Send the invoices", "all of them")
    assert task.status == TaskStatus.TASK_STATUS_IN_PROGRESS
    assert task.priority == TaskPriority.TASK_PRIORITY_HIGH
    assert (task.assigned_to, [*task.tags]) == ("ann", ["billing", "monthly"])
    assert task.due_date.ToJsonString() == "2099-01-31T11:00:00Z"


def test_validate_only_creates_nothing(tasks: Tasks, client: TaskClient) -> None:
    id_ = str(uuid4())
    assert tasks("create", "a", "--id", id_, "--validate-only").code == 0
    with pytest.raises(TaskNotFound):
        client.get(id_)


def test_list_combines_the_filter_with_the_shortcuts(tasks: Tasks, client: TaskClient) -> None:
    owner = f'a "quoted" \\ {uuid4().hex} *'
    wanted = client.create(title="wanted", priority="HIGH", assigned_to=owner, tags=["a", "b"])
    client.create(title="wanted", priority="LOW", assigned_to=owner, tags=["a", "b"])
    client.create(title="wanted", priority="HIGH", assigned_to=owner, tags=["a"])
    client.create(title="other", priority="HIGH", assigned_to=owner, tags=["a", "b"])
    result = tasks(
        *["list", "--filter", "wanted OR nothing", "--assigned-to", owner, "--tag", "a"],
        *["--tag", "b", "--priority", "high", "--priority", "urgent", "--status", "pending"],
        *["-o", "jsonl"],
    )
    assert [json.loads(line)["id"] for line in result.output.splitlines()] == [wanted.id]


def test_list_orders_tasks(tasks: Tasks, client: TaskClient, tag: str) -> None:
    for title in ["b", "c", "a"]:
        client.create(title=title, tags=[tag])
    result = tasks("list", "--tag", tag, "--order-by", "title desc", "-o", "json")
    assert [task["title"] for task in json.loads(result.output)] == ["c", "b", "a"]


def test_list_says_that_a_table_is_cut_off(tasks: Tasks, client: TaskClient, tag: str) -> None:
    for title in ["first", "second", "third"]:
        client.create(title=title, tags=[tag])
    result = tasks("list", "--tag", tag, "--limit", "2")
    assert len(result.output.splitlines()) == 4  # With the names of the columns, and a line.
    assert result.errors == "More than 2 tasks match: see --limit.\n"
    assert tasks("list", "--tag", tag, "--limit", "3").errors == ""


def test_update_changes_only_what_is_named(tasks: Tasks, client: TaskClient) -> None:
    before = client.create(title="a", description="b", tags=["x", "y"], priority="HIGH")
    result = tasks(
        *["update", before.id, "--title", "c", "--description", ""],
        *["--add-tag", "z", "--remove-tag", "X"],
    )
    assert result.code == 0
    after = client.get(before.id)
    assert (after.title, after.description, [*after.tags]) == ("c", "", ["y", "z"])
    assert after.priority == before.priority


def test_update_removes_a_due_date(tasks: Tasks, client: TaskClient) -> None:
    task = client.create(title="a")
    assert tasks("update", task.id, "--due-date", "2099-01-01").code == 0
    assert client.get(task.id).HasField("due_date")
    assert tasks("update", task.id, "--no-due-date").code == 0
    assert not client.get(task.id).HasField("due_date")


def test_update_with_a_stale_etag_is_a_conflict(tasks: Tasks, client: TaskClient) -> None:
    task = client.create(title="a")
    client.update(task.id, title="b")
    result = tasks("update", task.id, "--title", "c", "--etag", task.etag)
    assert result.code == 4
    assert client.get(task.id).title == "b"


def test_done_completes_all_tasks_or_none(tasks: Tasks, client: TaskClient) -> None:
    one, two = client.create(title="one"), client.create(title="two")
    assert tasks("done", one.id, str(uuid4())).code == 3
    assert client.get(one.id).status == TaskStatus.TASK_STATUS_PENDING
    assert tasks("done", one.id, two.id).code == 0
    assert client.get(two.id).status == TaskStatus.TASK_STATUS_COMPLETED


def test_delete_and_undelete(tasks: Tasks, client: TaskClient) -> None:
    task = client.create(title="a")
    assert tasks("delete", task.id).code == 0
    assert tasks("delete", task.id).code == 3
    assert tasks("delete", task.id, "--allow-missing").code == 0
    assert client.get(task.id).HasField("deleted_at")
    assert tasks("undelete", task.id).code == 0
    assert not client.get(task.id).HasField("deleted_at")


def test_history_shows_values_before_and_after(tasks: Tasks, client: TaskClient) -> None:
    task = client.create(title="TASK_STATUS_OLD", tags=["x", "y"])
    client.update(task.id, title="new", status="COMPLETED", tags=[])
    output = tasks("history", task.id).output
    assert "title: TASK_STATUS_OLD → new" in output
    assert "status: PENDING → COMPLETED" in output
    assert "tags: x, y → -" in output
    newest = tasks("history", task.id, "--limit", "1", "-o", "jsonl").output
    assert json.loads(newest)["type"] == "TYPE_UPDATED"


def test_stats_draw_bars_in_proportion(tasks: Tasks, client: TaskClient, tag: str) -> None:
    for _ in range(2):
        client.create(title="a", tags=[tag])
    client.create(title="a", status="COMPLETED", tags=[tag])
    bars = {
        line.split()[0]: line.count("█")
        for line in tasks("stats", "--tag", tag).output.splitlines()
        if line
    }
    assert (bars["PENDING"], bars["COMPLETED"], bars["CANCELLED"]) == (40, 20, 0)


def test_health_of_a_ready_service(tasks: Tasks) -> None:
    result = tasks("health", "-o", "json")
    assert (result.code, json.loads(result.output)) == (0, {"status": "SERVING"})


@pytest.mark.parametrize("command", ["done", "delete"])
def test_more_ids_than_a_batch_has_are_refused(
    tasks: Tasks, client: TaskClient, command: str
) -> None:
    task = client.create(title="a")
    result = tasks(command, *[task.id, *(str(uuid4()) for _ in range(1000))])
    assert result.code == 2
    assert "1001 ids, but at most 1000" in result.errors
    assert client.get(task.id) == task
