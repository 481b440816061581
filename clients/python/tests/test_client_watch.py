"""Watches that continue across restarts, lost positions and expired credentials."""

from __future__ import annotations

import asyncio
import datetime as dt
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from storage.database import Database
from storage.events import EventLog
from taskservice_client import (
    AsyncTaskClient,
    AsyncWatch,
    FileTokenStore,
    InvalidRequest,
    Task,
    TaskClient,
    Watch,
    WatchEventType,
)
from test_client_tasks import new_tag
from tests.support.postgres import embedded_url
from tests.support.service import PATIENCE_SECONDS, running_service

ADDED, MODIFIED, DELETED, BOOKMARK, RESTARTED = WatchEventType

ANOTHER_KEY = {"SECRET_KEY": "another key of 32 characters, yes"}


def titles(watch: Watch, count: int) -> list[tuple[WatchEventType, str]]:
    """The next events that are no bookmarks."""
    found: list[tuple[WatchEventType, str]] = []
    while len(found) < count:
        event = next(watch)
        if event.type is not BOOKMARK:
            found.append((event.type, event.task.title))
    return found


class Restartable:
    """A service that starts again on the same port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes = ExitStack()
        self.process = self._processes.enter_context(running_service(folder))
        self.port = self.process.port
        self.address = f"127.0.0.1:{self.port}"

    def forget_events(self) -> None:
        """Remove the events of the past, as the retention does."""
        database = Database(embedded_url(self.process.data_dir))
        EventLog(database).trim(older_than=dt.timedelta(0))
        database.close()

    def restart(self, **settings: str) -> None:
        self.process.stop()
        another = running_service(self._folder, GRPC_PORT=str(self.port), **settings)
        self.process = self._processes.enter_context(another)

    def close(self) -> None:
        self._processes.close()


@pytest.fixture
def restartable(tmp_path: Path) -> Iterator[Restartable]:
    service = Restartable(tmp_path / "service")
    yield service
    service.close()


def test_a_watch_begins_with_the_tasks_that_match(client: TaskClient) -> None:
    tag = new_tag()
    task = client.create(title="before", tags=[tag])
    with client.watch(f"tags:{tag}") as watch:
        assert [next(watch).type, next(watch).type] == [ADDED, BOOKMARK]
        client.update(task.id, title="after")
        client.delete(task.id)
        assert titles(watch, 2) == [(MODIFIED, "after"), (DELETED, "after")]


def test_a_watch_continues_after_a_token(client: TaskClient) -> None:
    tag = new_tag()
    with client.watch(f"tags:{tag}") as watch:
        token = next(watch).resume_token
    client.create(title="meanwhile", tags=[tag])
    with client.watch(f"tags:{tag}", resume_token=token) as watch:
        assert titles(watch, 1) == [(ADDED, "meanwhile")]


def test_the_store_receives_a_token_once_its_event_is_processed(
    client: TaskClient, tmp_path: Path
) -> None:
    """A program that ends while it processes an event receives the event again."""
    tag, store = new_tag(), FileTokenStore(tmp_path / "token")
    with client.watch(f"tags:{tag}", store=store) as watch:
        assert next(watch).type is BOOKMARK
        for title in ("processed", "in progress"):
            client.create(title=title, tags=[tag])
        assert titles(watch, 2) == [(ADDED, "processed"), (ADDED, "in progress")]
    with client.watch(f"tags:{tag}", store=store) as watch:
        assert titles(watch, 1) == [(ADDED, "in progress")]


def test_a_watch_continues_across_a_restart(restartable: Restartable) -> None:
    with TaskClient(restartable.address) as client, client.watch() as watch:
        assert next(watch).type is BOOKMARK
        client.create(title="before")
        assert titles(watch, 1) == [(ADDED, "before")]
        restartable.restart()
        client.create(title="after")
        assert titles(watch, 1) == [(ADDED, "after")]


def test_a_watch_that_loses_its_first_stream_says_that_it_begins_anew(
    restartable: Restartable,
) -> None:
    """The initial tasks have no token to continue from; here they are more than is buffered."""
    with TaskClient(restartable.address) as client:
        client.create_many(Task(title="a task", description="x" * 2000) for _ in range(3000))
        with client.watch() as watch:
            assert next(watch).type is ADDED
            restartable.restart()
            assert set(iter(lambda: next(watch).type, RESTARTED)) == {ADDED}
            assert next(watch).type is ADDED


def test_a_watch_without_its_key_says_that_it_begins_anew(restartable: Restartable) -> None:
    with TaskClient(restartable.address) as client, client.watch() as watch:
        assert next(watch).type is BOOKMARK
        client.create(title="a task")
        assert titles(watch, 1) == [(ADDED, "a task")]
        restartable.restart(**ANOTHER_KEY)
        assert titles(watch, 2) == [(RESTARTED, ""), (ADDED, "a task")]


def test_a_watch_without_its_events_says_that_it_begins_anew(restartable: Restartable) -> None:
    with TaskClient(restartable.address) as client:
        with client.watch() as watch:
            token = next(watch).resume_token
        client.create(title="a task")
        restartable.forget_events()
        with client.watch(resume_token=token) as watch:
            assert titles(watch, 2) == [(RESTARTED, ""), (ADDED, "a task")]


def test_a_watch_of_changes_only_begins_anew_without_tasks(restartable: Restartable) -> None:
    with TaskClient(restartable.address) as client:
        with client.watch() as watch:
            token = next(watch).resume_token
        client.create(title="a task")
        restartable.forget_events()
        with client.watch(resume_token=token, initial=False) as watch:
            assert next(watch).type is RESTARTED
            threading.Timer(0.5, client.create, kwargs={"title": "new"}).start()
            assert titles(watch, 1) == [(ADDED, "new")]


def test_a_watch_with_a_wrong_filter_fails(client: TaskClient) -> None:
    with pytest.raises(InvalidRequest):
        next(client.watch("priority = NONE"))


def test_a_watch_is_cancelled_from_another_thread(client: TaskClient) -> None:
    watch = client.watch("tags:none")
    assert next(watch).type is BOOKMARK
    thread = threading.Thread(target=list, args=[watch])
    thread.start()
    watch.cancel()
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()


def test_a_watch_ends_when_its_client_is_closed(address: str) -> None:
    client = TaskClient(address)
    watch = client.watch("tags:none")
    assert next(watch).type is BOOKMARK
    thread = threading.Thread(target=list, args=[watch])
    thread.start()
    client.close()
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()


def test_a_watch_for_asyncio_continues_and_is_cancelled(restartable: Restartable) -> None:
    async def run() -> None:
        async with AsyncTaskClient(restartable.address) as client, client.watch() as watch:
            assert (await anext(watch)).type is BOOKMARK
            await asyncio.to_thread(restartable.restart)
            await client.create(title="after")
            while (event := await anext(watch)).type is BOOKMARK:
                pass
            assert event.task.title == "after"
            waiting = asyncio.create_task(anext_of(watch))
            await asyncio.sleep(0)
            watch.cancel()
            assert await waiting is None

    async def anext_of(watch: AsyncWatch) -> Task | None:
        async for event in watch:
            if event.type is not BOOKMARK:
                return event.task
        return None

    asyncio.run(run())
