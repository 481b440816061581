"""The watcher that the README shows, run as its reader would run it."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from storage.database import Database
from storage.events import EventLog
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import CreateTaskRequest
from tests.e2e.service import PATIENCE_SECONDS, ServiceProcess, wait_until

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "watch_tasks.py"


@contextmanager
def watcher(port: int, token_file: Path, filter_: str = "") -> Iterator[list[str]]:
    """The example, and the titles that it has told of so far; killed at the end."""
    arguments = [sys.executable, str(EXAMPLE), f"127.0.0.1:{port}", str(token_file), filter_]
    titles: list[str] = []
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
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


def await_titles(told: list[str], *titles: str) -> None:
    wait_until(lambda: len(told) >= len(titles), f"{titles} are told")
    assert told == list(titles)


def test_the_example_goes_on_after_restarts(
    start_service: Callable[..., ServiceProcess], own_database_url: str, tmp_path: Path
) -> None:
    """Of the service, and of itself."""
    token_file = tmp_path / "token"
    settings = {"DATABASE_URL": own_database_url}
    service = start_service(**settings)
    port = service.port
    create(service, "before")
    with watcher(port, token_file) as told:
        await_titles(told, "before")
        create(service, "first")
        await_titles(told, "before", "first")
        service.stop()
        service = start_service(**settings, GRPC_PORT=str(port))
        create(service, "second")
        await_titles(told, "before", "first", "second")
        token = token_file.read_text()
        create(service, "third")
        wait_until(lambda: token_file.read_text() != token, "the third one's token is kept")
    create(service, "fourth")
    with watcher(port, token_file) as told:
        await_titles(told, "fourth")


def test_the_example_begins_anew_when_it_was_away_for_too_long(
    start_service: Callable[..., ServiceProcess], own_database_url: str, tmp_path: Path
) -> None:
    service = start_service(DATABASE_URL=own_database_url)
    token_file = tmp_path / "token"
    create(service, "a task")
    with watcher(service.port, token_file) as told:
        await_titles(told, "a task")
        wait_until(token_file.exists, "a token is kept")
    create(service, "another")
    forget_events(own_database_url)
    with watcher(service.port, token_file) as told:
        wait_until(lambda: len(told) >= 2, "both tasks are told")
        assert sorted(told) == ["a task", "another"]
