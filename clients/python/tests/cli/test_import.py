"""What an import does with each line: create, skip, or refuse it and say why."""

import json
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from cli.conftest import Result, Tasks
from taskservice_client import TaskClient

Import = Callable[..., Result]


@pytest.fixture
def import_lines(tasks: Tasks, tmp_path: Path) -> Import:
    """Import these records or lines."""

    def import_lines(*lines: dict[str, object] | str, options: tuple[str, ...] = ()) -> Result:
        file = tmp_path / "tasks.jsonl"
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        file.write_text("\n".join(texts))
        return tasks("import", str(file), *options)

    return import_lines


def a_line(**fields: object) -> dict[str, object]:
    return {"id": str(uuid4()), "title": "a", **fields}


def test_what_only_the_service_sets_is_set_anew(import_lines: Import, client: TaskClient) -> None:
    line = a_line(
        status="TASK_STATUS_COMPLETED",
        created_by="ann",
        created_at="2001-01-01T00:00:00Z",
        completed_at="2001-01-01T00:00:00Z",
        etag='"old"',
    )
    assert import_lines(line).errors == "1 created, 0 unchanged\n"
    task = client.get(str(line["id"]))
    assert task.created_by != "ann"
    assert task.created_at == task.completed_at
    assert task.created_at.seconds > 1_700_000_000


def test_a_task_that_differs_is_a_conflict_and_stays(
    import_lines: Import, client: TaskClient
) -> None:
    task = client.create(title="here", priority="HIGH")
    result = import_lines(a_line(), a_line(id=task.id, title="there"), a_line())
    assert result.code == 4
    assert f"line 2: conflict: {task.id} exists with another priority, title" in result.errors
    assert "2 created, 0 unchanged, 1 conflict" in result.errors
    assert client.get(task.id) == task


def test_a_deleted_task_is_a_conflict(import_lines: Import, client: TaskClient) -> None:
    task = client.create(title="a")
    client.delete(task.id)
    result = import_lines(a_line(id=task.id))
    assert result.code == 4
    assert f"line 1: conflict: {task.id} is deleted" in result.errors


def test_an_id_twice_in_a_file_is_created_once(import_lines: Import) -> None:
    line = a_line()
    assert import_lines(line, line).errors == "1 created, 1 unchanged\n"
    result = import_lines(line, line | {"title": "b"})
    assert (result.code, "line 2: conflict" in result.errors) == (4, True)


def test_some_tasks_that_exist_leave_the_others_to_be_created(import_lines: Import) -> None:
    lines = [a_line() for _ in range(100)]
    import_lines(*lines[::2])
    assert import_lines(*lines).errors == "50 created, 50 unchanged\n"


def test_equal_means_equal_as_the_service_stores_it(import_lines: Import) -> None:
    line = a_line(
        title="Cafe\u0301",
        tags=["Billing", "billing", "ops"],
        due_date="2099-01-01T00:00:00.123456789Z",
    )
    line["id"] = str(line["id"]).upper()
    import_lines(line)
    assert import_lines(line).errors == "0 created, 1 unchanged\n"


def test_lines_that_are_no_valid_task_are_refused_one_by_one(
    import_lines: Import, client: TaskClient
) -> None:
    good = a_line()
    result = import_lines(
        "{", "5", {"title": "a"}, a_line(nothing=1), a_line(title=" "), good,
        a_line(tags=["x" * 51]), a_line(id="1"), a_line(deleted_at="2001-01-01T00:00:00Z"),
        a_line(status="OPEN"),
    )  # fmt: skip
    assert result.code == 7
    refused = {line.split(":")[0] for line in result.errors.splitlines()[:-2]}
    assert refused == {f"line {number}" for number in [1, 2, 3, 4, 5, 7, 8, 9, 10]}
    assert "line 5: invalid: title: must not be blank" in result.errors
    assert "1 created, 0 unchanged, 9 invalid" in result.errors
    assert client.get(str(good["id"])).title == "a"


def test_a_past_due_date_is_refused_or_dropped_as_the_caller_says(
    import_lines: Import, client: TaskClient
) -> None:
    line = a_line(due_date="2001-01-01T00:00:00Z")
    result = import_lines(line)
    assert (result.code, "line 1: invalid: due_date: must be in the future" in result.errors) == (
        7,
        True,
    )
    dropping = ("--drop-past-due-dates",)
    result = import_lines(line, options=dropping)
    assert (result.code, result.errors) == (0, "1 created, 0 unchanged, 1 due dates dropped\n")
    assert not client.get(str(line["id"])).HasField("due_date")
    assert import_lines(line, options=dropping).errors == "0 created, 1 unchanged\n"


def test_tasks_that_were_purged_are_created_again(import_lines: Import, client: TaskClient) -> None:
    """The service remembers their request ids for a day, and answers that they are gone."""
    lines = [a_line(tags=["purged"]) for _ in range(3)]
    import_lines(*lines)
    client.delete_many([str(line["id"]) for line in lines])
    client.purge("tags:purged", force=True)
    assert import_lines(*lines).errors == "3 created, 0 unchanged\n"
