"""Batches: the number of statements does not depend on the number of items."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from server.tasks import writes
from server.tasks.validation import check_update
from storage.database import Database
from storage.repository import Origin, TaskRepository
from taskservice.v1.task_service_pb2 import CreateTaskRequest
from tests.support.batches import create, delete, new_id, update
from tests.support.statements import each_statement


@contextmanager
def counted_statements(database: Database) -> Iterator[list[str]]:
    """The statements that reach the database while this holds."""
    statements: list[str] = []

    with each_statement(lambda statement, _: statements.append(statement.sql), this_thread=True):
        yield statements


class TestRoundTrips:
    """The time of a batch is that of its rows, not that of so many trips to the database."""

    ORIGIN = Origin("me")

    def creations(self, count: int) -> list[CreateTaskRequest]:
        return [create(request_id=new_id()) for _ in range(count)]

    def ids(self, repository: TaskRepository, count: int) -> list[str]:
        rows = writes.create(repository, self.creations(count), self.ORIGIN)
        return [row.id for row in rows]

    def trips(self, database: Database, write: Callable[[], object]) -> int:
        with counted_statements(database) as statements:
            write()
        return len(statements)

    @pytest.mark.parametrize(("count", "trips"), [(1, 1), (2, 2), (100, 2)])
    def test_of_creations(
        self, database: Database, repository: TaskRepository, count: int, trips: int
    ) -> None:
        items = self.creations(count)
        assert self.trips(database, lambda: writes.create(repository, items, self.ORIGIN)) == trips

    @pytest.mark.parametrize(("count", "trips"), [(1, 2), (2, 1), (100, 1)])
    def test_of_repeated_creations(
        self, database: Database, repository: TaskRepository, count: int, trips: int
    ) -> None:
        items = self.creations(count)
        writes.create(repository, items, self.ORIGIN)
        assert self.trips(database, lambda: writes.create(repository, items, self.ORIGIN)) == trips

    @pytest.mark.parametrize(("count", "done"), [(2, 1), (100, 50)])
    def test_of_creations_of_which_some_are_repeated(
        self, database: Database, repository: TaskRepository, count: int, done: int
    ) -> None:
        items = self.creations(count)
        writes.create(repository, items[:done], self.ORIGIN)
        assert self.trips(database, lambda: writes.create(repository, items, self.ORIGIN)) == 2

    @pytest.mark.parametrize("count", [1, 100])
    @pytest.mark.parametrize("with_ids", [False, True])
    def test_of_updates(
        self, database: Database, repository: TaskRepository, count: int, with_ids: bool
    ) -> None:
        items = [update(id_, title="newer") for id_ in self.ids(repository, count)]
        for item in items if with_ids else []:
            item.request_id = new_id()
        fields = [check_update(item) for item in items]
        trips = self.trips(database, lambda: writes.update(repository, items, fields, self.ORIGIN))
        assert trips == (1 if count == 1 else 2 + with_ids)

    @pytest.mark.parametrize("count", [1, 100])
    def test_of_deletions(self, database: Database, repository: TaskRepository, count: int) -> None:
        items = [delete(id_) for id_ in self.ids(repository, count)]
        assert self.trips(database, lambda: writes.delete(repository, items, self.ORIGIN)) == 2
