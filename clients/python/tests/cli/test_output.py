"""Output for programs and people: standard output has data only."""

import json
from collections.abc import Callable
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
