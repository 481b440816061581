"""The tables' own rules: a row that breaks one cannot exist."""

from __future__ import annotations

import pytest
from psycopg2 import Error
from sqlalchemy import CheckConstraint, text
from sqlalchemy.exc import IntegrityError

from storage.database import Database
from storage.tables import tasks
from tests.support.repository import OneByOne, new_task

BROKEN = {
    "UPDATE tasks SET title = ''": "title_length",
    "UPDATE tasks SET title = repeat('ü', 201)": "title_length",
    "UPDATE tasks SET description = repeat('ü', 2001)": "description_length",
    "UPDATE tasks SET assigned_to = repeat('ü', 201)": "assigned_to_length",
    "UPDATE tasks SET status = 0": "status_known",
    "UPDATE tasks SET status = 5": "status_known",
    "UPDATE tasks SET priority = 0": "priority_known",
    "UPDATE tasks SET priority = 5": "priority_known",
    "UPDATE tasks SET tags = array_fill('x'::text, ARRAY[11])": "tags_count",
    "UPDATE tasks SET status = 3": "completed_at_follows_status",
    "UPDATE tasks SET completed_at = now()": "completed_at_follows_status",
    "UPDATE tasks SET version = 0": "version_positive",
}


@pytest.mark.parametrize(("statement", "constraint"), BROKEN.items())
def test_a_row_that_breaks_a_rule_cannot_exist(
    statement: str, constraint: str, repository: OneByOne, database: Database
) -> None:
    repository.create(new_task())
    with database.engine.connect() as connection, pytest.raises(IntegrityError) as raised:
        connection.execute(text(statement))
    assert isinstance(raised.value.orig, Error)
    assert raised.value.orig.diag.constraint_name == f"ck_tasks_{constraint}"


def test_every_rule_of_the_tables_is_broken_above() -> None:
    rules = {str(rule.name) for rule in tasks.constraints if isinstance(rule, CheckConstraint)}
    assert rules == {f"ck_tasks_{constraint}" for constraint in BROKEN.values()}


def test_the_longest_values_of_the_contract_can_be_stored(repository: OneByOne) -> None:
    """Lengths are characters, not bytes."""
    values = new_task(
        title="💶" * 200, description="💶" * 2000, assigned_to="💶" * 200, tags=["💶" * 50] * 10
    )
    stored = repository.create(values)._asdict()
    assert {name: stored[name] for name in values} == values
