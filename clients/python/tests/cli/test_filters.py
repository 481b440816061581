"""The shortcuts quote values, so that they match these values and nothing else."""

from uuid import uuid4

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cli.conftest import Tasks
from taskservice_client import TaskClient
from taskservice_client.cli.filters import Selection

EXAMPLES = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
SPECIAL = st.text(st.sampled_from('"\\*() ab=:-ORé'), max_size=15).map(str.strip)


@EXAMPLES
@example('"')
@example("*")
@example("\\")
@given(SPECIAL)
def test_an_assignee_of_any_characters_is_found(client: TaskClient, text: str) -> None:
    owner = f"{uuid4().hex}{text}"
    task = client.create(title="a", assigned_to=owner)
    client.create(title="a", assigned_to=f"{owner}x")
    found = client.list(Selection(assigned_to=owner).expression)
    assert [each.id for each in found] == [task.id]


@EXAMPLES
@given(SPECIAL)
def test_a_tag_of_any_characters_is_found(client: TaskClient, text: str) -> None:
    tag = f"{uuid4().hex}{text}"
    task = client.create(title="a", tags=[tag])
    client.create(title="a", tags=[f"{tag}x"])
    assert [each.id for each in client.list(Selection(tag=[tag]).expression)] == [task.id]


def test_no_options_are_an_empty_filter() -> None:
    assert Selection().expression == ""


def test_an_or_in_the_filter_stays_within_it() -> None:
    selection = Selection(filter="a OR b", assigned_to="")
    assert selection.expression == '(a OR b) AND assigned_to = ""'


def test_unassigned_tasks_are_found_by_an_empty_assignee(tasks: Tasks, client: TaskClient) -> None:
    tag = uuid4().hex
    task = client.create(title="a", tags=[tag])
    client.create(title="a", tags=[tag], assigned_to="ann")
    output = tasks("list", "--tag", tag, "--assigned-to", "", "-o", "jsonl").output
    assert output.count("\n") == 1
    assert task.id in output
