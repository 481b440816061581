"""The watcher that the README shows, run as its reader would run it."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from storage.database import Database
from storage.events import EventLog
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import CreateTaskRequest
from tests.support.service import PATIENCE_SECONDS, ServiceProcess, wait_until
from tests.support.watching import BOOKMARK, Watch

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "watch_tasks.py"


def command(port: int, token_file: Path, filter_: str) -> list[str]:
    return [sys.executable, str(EXAMPLE), f"127.0.0.1:{port}", str(token_file), filter_]


@contextmanager
def watcher(port: int, token_file: Path, filter_: str = "") -> Iterator[list[str]]:
    """Run the example and yield the titles that it has printed; kill it at the end."""
    titles: list[str] = []
    with subprocess.Popen(
        command(port, token_file, filter_), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        output = process.stdout
        reader = threading.Thread(
            target=lambda: titles.extend(line.split(maxsplit=2)[2].strip() for line in output)
        )
        reader.start()
        try:
            yield titles
        finally:
            process.kill()
            reader.join(PATIENCE_SECONDS)


def create(service: ServiceProcess, *titles: str) -> None:
    stub = service.stub()
    for title in titles:
        stub.CreateTask(CreateTaskRequest(task=Task(title=title)), timeout=PATIENCE_SECONDS)


def forget_events(url: str) -> None:
    database = Database(url)
    EventLog(database).trim(older_than=dt.timedelta(0))
    database.close()


def await_titles(printed: list[str], *titles: str) -> None:
    wait_until(lambda: len(printed) >= len(titles), f"{titles} are printed")
    assert printed == list(titles)


def is_current(service: ServiceProcess, token_file: Path) -> bool:
    """Return whether no change follows the token that is kept."""
    watch = Watch(service.stub(), resume_token=token_file.read_text())
    try:
        return watch.next().type == BOOKMARK
    finally:
        watch.cancel()


def test_the_example_goes_on_after_restarts(
    start_service: Callable[..., ServiceProcess], own_database_url: str, tmp_path: Path
) -> None:
    """Of the service, and of itself."""
    token_file = tmp_path / "token"
    settings = {"DATABASE_URL": own_database_url}
    service = start_service(**settings)
    port = service.port
    create(service, "before")
    with watcher(port, token_file) as printed:
        await_titles(printed, "before")
        create(service, "first")
        await_titles(printed, "before", "first")
        service.stop()
        service = start_service(**settings, GRPC_PORT=str(port))
        create(service, "second")
        await_titles(printed, "before", "first", "second")
        create(service, "third")
        await_titles(printed, "before", "first", "second", "third")
        wait_until(lambda: is_current(service, token_file), "the last token is kept")
    create(service, "fourth")
    with watcher(port, token_file) as printed:
        await_titles(printed, "fourth")


def test_the_example_begins_anew_when_it_was_away_for_too_long(
    start_service: Callable[..., ServiceProcess], own_database_url: str, tmp_path: Path
) -> None:
    service = start_service(DATABASE_URL=own_database_url)
    token_file = tmp_path / "token"
    create(service, "a task")
    with watcher(service.port, token_file) as printed:
        await_titles(printed, "a task")
        wait_until(token_file.exists, "a token is kept")
    create(service, "another")
    forget_events(own_database_url)
    with watcher(service.port, token_file) as printed:
        wait_until(lambda: len(printed) >= 2, "both tasks are printed")
        assert sorted(printed) == ["a task", "another"]


@pytest.mark.parametrize("change", ["rotated", "another filter's", "damaged"])
def test_the_example_begins_anew_when_its_token_is_good_no_longer(
    start_service: Callable[..., ServiceProcess],
    own_database_url: str,
    tmp_path: Path,
    change: str,
) -> None:
    settings = {"DATABASE_URL": own_database_url}
    rotated = {"SECRET_KEY": "another key of 32 characters, yes"}
    service = start_service(**settings)
    port, token_file = service.port, tmp_path / "token"
    create(service, "a task")
    with watcher(port, token_file, "priority = MEDIUM") as printed:
        await_titles(printed, "a task")
        wait_until(token_file.exists, "a token is kept")
    if change == "rotated":
        service.stop()
        start_service(**settings, **rotated, GRPC_PORT=str(port))
    if change == "damaged":
        token_file.write_text(token_file.read_text()[:-1])
    filter_ = "priority = MEDIUM" if change != "another filter's" else "status = PENDING"
    with watcher(port, token_file, filter_) as printed:
        await_titles(printed, "a task")


def test_the_example_resumes_after_a_rotation_with_the_previous_key(
    start_service: Callable[..., ServiceProcess], own_database_url: str, tmp_path: Path
) -> None:
    keys = "the first key has 32 characters.", "the second key has 32 characters"
    settings = {"DATABASE_URL": own_database_url}
    service = start_service(**settings, SECRET_KEY=keys[0])
    port, token_file = service.port, tmp_path / "token"
    create(service, "before")
    with watcher(port, token_file) as printed:
        await_titles(printed, "before")
        wait_until(token_file.exists, "a token is kept")
        service.stop()
        rotated = {"SECRET_KEY": keys[1], "SECRET_KEY_PREVIOUS": keys[0]}
        service = start_service(**settings, **rotated, GRPC_PORT=str(port))
        create(service, "after")
        await_titles(printed, "before", "after")


@pytest.mark.parametrize("has_token", [False, True])
def test_the_example_ends_when_its_filter_is_wrong(
    start_service: Callable[..., ServiceProcess],
    own_database_url: str,
    tmp_path: Path,
    has_token: bool,
) -> None:
    """A retry would never succeed; and the token may be valid for the right server."""
    service = start_service(DATABASE_URL=own_database_url)
    token_file = tmp_path / "token"
    if has_token:
        create(service, "a task")
        with watcher(service.port, token_file) as printed:
            await_titles(printed, "a task")
            wait_until(token_file.exists, "a token is kept")
    done = subprocess.run(
        command(service.port, token_file, "priority = NONE"),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode != 0
    assert "filter: " in done.stderr
    assert token_file.exists() == has_token
