"""`make migration-check` fails when a table has changed without a migration."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from alembic.util import CommandError
from sqlalchemy import Column, Text

from storage.migrations.__main__ import check
from storage.tables import metadata, tasks


@pytest.fixture
def changed_table() -> Iterator[None]:
    tasks.append_column(column := Column("colour", Text))
    yield
    tasks._columns.remove(column)


def test_the_migrations_give_what_the_tables_say() -> None:
    assert metadata.tables
    check()


@pytest.mark.usefixtures("changed_table")
def test_a_change_without_a_migration_is_found() -> None:
    with pytest.raises(CommandError, match="colour"):
        check()
