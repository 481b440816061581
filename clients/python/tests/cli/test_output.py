"""Output for programs and people: standard output has data only."""

import json
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest
import yaml

from cli.conftest import Tasks
from taskservice_client import Task, TaskClient

PARSERS: dict[str, Callable[[str], object]] = {
    "json": json.loads,
    "jsonl": lambda text: [json.loads(line) for line in text.splitlines()],
    "yaml": yaml.safe_load,
}
HARD_TITLE = "Ünïcode: [bold]no markup[/] :smile: \"quoted\" 'too' # - {x}"


@pytest.fixture
def task(client: TaskClient) -> Task:
    """A task with a tag of its own."""
    return client.create(title=HARD_TITLE, tags=[uuid4().hex], due_date=None)


@pytest.mark.parametrize("form", PARSERS)
def test_forms_for_programs_have_the_same_records(tasks: Tasks, task: Task, form: str) -> None:
    result = tasks("list", "--tag", task.tags[0], "-o", form)
    assert PARSERS[form](result.output) == [json.loads(tasks("get", task.id, "-o", "json").output)]
    assert result.errors == ""


@pytest.mark.parametrize("form", PARSERS)
def test_no_tasks_are_an_empty_list(tasks: Tasks, form: str) -> None:
    assert PARSERS[form](tasks("list", "--tag", uuid4().hex, "-o", form).output) == []


def test_records_have_the_names_of_the_contract(tasks: Tasks, task: Task) -> None:
    record = json.loads(tasks("get", task.id, "-o", "json").output)
    assert record["created_at"] == task.created_at.ToJsonString()
    assert (record["status"], record["title"]) == ("TASK_STATUS_PENDING", HARD_TITLE)


def test_a_table_in_a_pipe_shortens_nothing_and_has_no_colours(tasks: Tasks, task: Task) -> None:
    output = tasks("list", "--tag", task.tags[0]).output
    assert HARD_TITLE in output
    assert task.id in output
    assert "\x1b" not in output


def test_details_show_every_field(tasks: Tasks, task: Task) -> None:
    output = tasks("get", task.id).output
    shown = {line.split()[0] for line in output.splitlines()}
    assert shown == {field.name for field, _ in task.ListFields()}


def test_transfers_give_counts_to_programs(tasks: Tasks, task: Task, tmp_path: Path) -> None:
    file = str(tmp_path / "tasks.jsonl")
    exported = tasks("export", file, "--tag", task.tags[0], "-o", "json")
    assert json.loads(exported.output) == {"exported": 1, "by_earlier_start": 0}
    imported = tasks("import", file, "-o", "yaml")
    counts = {"created": 0, "unchanged": 1, "conflict": 0, "invalid": 0, "due_dates_dropped": 0}
    assert yaml.safe_load(imported.output) == counts
    assert (exported.errors, imported.errors) == ("", "")


def test_an_export_to_standard_output_has_no_other_form(tasks: Tasks) -> None:
    result = tasks("export", "-o", "yaml")
    assert (result.code, result.output) == (2, "")
    assert "list -o yaml" in result.errors
