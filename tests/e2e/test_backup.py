"""`make backup` while clients write, and `make restore` into an empty database elsewhere."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest
from sqlalchemy import make_url

from deploy.database.backup import BackupError, back_up, restore
from server.settings import Settings
from storage import schema
from storage.embedded import EmbeddedPostgres
from taskservice.v1.task_event_pb2 import TaskEvent
from taskservice.v1.task_pb2 import TASK_STATUS_COMPLETED, Task
from taskservice.v1.task_service_pb2 import (
    CreateTaskRequest,
    GetTaskRequest,
    GetTaskStatsRequest,
    ListTaskEventsRequest,
    ListTasksRequest,
    ListTasksResponse,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.databases import downgrade, made_database
from tests.support.errors import fails
from tests.support.postgres import execute
from tests.support.service import environment, wait_until
from tests.support.watching import Watch, create, delete, update
from tests.support.workers import running_worker

ROOT = Path(__file__).parents[2]
OURS = 'assigned_to = "ann"'
# So many that the new server, to which the backup goes, has used fewer.
USE_TRANSACTION_IDS = """
    DO $$ BEGIN FOR n IN 1..500 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$
"""


class Restored(NamedTuple):
    """What was there before the backup, what the commands wrote, and the restored service."""

    tasks: list[Task]
    history: list[TaskEvent]
    page_token: str
    resume_token: str
    outputs: list[str]
    stub: TaskServiceStub
    url: str


def run(command: str, file: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-m", "deploy.database.backup", command, str(file)]
    given = environment(file.parent, settings)
    return subprocess.run(
        arguments, cwd=ROOT, env=given, capture_output=True, text=True, check=False
    )


def counted(command: str, file: Path, url: str) -> str:
    """Run a command that succeeds; return how many tasks and events it reports."""
    done = run(command, file, DATABASE_URL=url)
    assert done.returncode == 0, done.stderr
    return done.stdout.partition(" are ")[0]


@contextmanager
def constant_writes(stub: TaskServiceStub) -> Iterator[None]:
    """Create tasks during the block; some of them are there at its beginning."""
    ended, written = threading.Event(), itertools.count()

    def write() -> None:
        while not ended.is_set():
            stub.CreateTask(CreateTaskRequest(task=Task(title=f"task {next(written)}")))

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: next(written) > 50, "tasks are written")
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def page(stub: TaskServiceStub, page_token: str = "") -> ListTasksResponse:
    request = ListTasksRequest(filter=OURS, page_size=2, page_token=page_token)
    return stub.ListTasks(request)


def history_of(stub: TaskServiceStub, tasks: list[Task]) -> list[TaskEvent]:
    """List the events without their ids, which are positions in the order of one server."""
    requests = [ListTaskEventsRequest(task_id=task.id) for task in tasks]
    events = [event for request in requests for event in stub.ListTaskEvents(request).events]
    for event in events:
        event.ClearField("id")
    return events


def written_by(stub: TaskServiceStub) -> list[Task]:
    """Create tasks with tags, one of them completed and one deleted."""
    tasks = create(stub, *"abcdef", assigned_to="ann", tags=["Billing", "Straße"])
    tasks[1] = update(stub, tasks[1], title="B", description="second\nline")
    tasks[2] = update(stub, tasks[2], status=TASK_STATUS_COMPLETED)
    delete(stub, tasks[3])
    return [stub.GetTask(GetTaskRequest(id=task.id)) for task in tasks]


@pytest.fixture(scope="module")
def restored(
    postgres_url: str, settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Restored]:
    """A backup under load of the server under test, restored into a new server."""
    folder = tmp_path_factory.mktemp("backup")
    file = folder / "tasks.dump"
    with made_database(postgres_url) as url, running_worker(settings, url) as channel:
        stub = TaskServiceStub(channel)
        execute(url, USE_TRANSACTION_IDS)
        tasks = written_by(stub)
        history = history_of(stub, tasks)
        page_token = page(stub).next_page_token
        watch = Watch(stub)
        resume_token = watch.bookmark()
        watch.cancel()
        with constant_writes(stub):
            outputs = [counted("backup", file, url)]
    with EmbeddedPostgres(folder / "data", settings={"fsync": "off"}) as postgres:
        outputs.append(counted("restore", file, postgres.url))
        with running_worker(settings, postgres.url) as channel:
            stub = TaskServiceStub(channel)
            yield Restored(tasks, history, page_token, resume_token, outputs, stub, postgres.url)


def test_restored_tasks_are_equal(restored: Restored) -> None:
    there = [restored.stub.GetTask(GetTaskRequest(id=task.id)) for task in restored.tasks]
    assert there == restored.tasks


def test_restored_history_is_equal(restored: Restored) -> None:
    assert history_of(restored.stub, restored.tasks) == restored.history


def test_restore_reports_what_the_backup_reported(restored: Restored) -> None:
    assert restored.outputs[0] == restored.outputs[1]
    assert int(restored.outputs[0].split()[0]) > 50


def test_restored_statistics_are_those_of_the_tasks(restored: Restored) -> None:
    total = execute(restored.url, "SELECT count(*) FROM tasks WHERE deleted_at IS NULL")
    assert restored.stub.GetTaskStats(GetTaskStatsRequest()).total == total


def test_pages_go_on_after_a_restore(restored: Restored) -> None:
    next_page = page(restored.stub, restored.page_token)
    remaining = [task for task in restored.tasks if not task.HasField("deleted_at")][::-1][2:4]
    assert list(next_page.tasks) == remaining


def test_watches_begin_anew_after_a_restore(restored: Restored) -> None:
    with fails(grpc.StatusCode.OUT_OF_RANGE, "RESUME_TOKEN_EXPIRED"):
        raise Watch(restored.stub, resume_token=restored.resume_token).error()
    watch = Watch(restored.stub)
    watch.bookmark()
    (task,) = create(restored.stub, "written after the restore")
    assert watch.change().task == task
    watch.cancel()


def test_a_restored_task_can_be_written(restored: Restored) -> None:
    """Last, as it changes a task that others compare."""
    assert update(restored.stub, restored.tasks[0], title="A").title == "A"
    (event, *_) = history_of(restored.stub, restored.tasks[:1])
    assert [change.field for change in event.changes] == ["title"]


def test_a_backup_of_an_older_build_is_migrated(
    own_database_url: str, empty_database_url: str, tmp_path: Path
) -> None:
    downgrade(own_database_url, "0004")
    back_up(own_database_url, tmp_path / "tasks.dump")
    restore(empty_database_url, tmp_path / "tasks.dump")
    revision = execute(empty_database_url, "SELECT version_num FROM alembic_version")
    assert revision == schema.head_revision()


# --- What is refused ------------------------------------------------------------------------------


class Source(NamedTuple):
    """A database with tasks, and its backup."""

    url: str
    file: Path


@pytest.fixture(scope="module")
def source(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    file = tmp_path_factory.mktemp("source") / "tasks.dump"
    with made_database(postgres_url) as url:
        execute(
            url,
            "INSERT INTO tasks (id, title, status, priority, created_by, xid) SELECT "
            "gen_random_uuid(), md5(n::text), 1, 2, 'ann', '1' FROM generate_series(1, 5000) AS n",
        )
        back_up(url, file)
        yield Source(url, file)


def test_a_backup_is_for_its_owner_only(source: Source) -> None:
    assert source.file.stat().st_mode & 0o077 == 0


def test_a_truncated_backup_restores_nothing(
    source: Source, empty_database_url: str, tmp_path: Path
) -> None:
    content = source.file.read_bytes()
    truncated = tmp_path / "tasks.dump"
    truncated.write_bytes(content[: len(content) * 3 // 4])
    with pytest.raises(BackupError, match="end of file"):
        restore(empty_database_url, truncated)
    assert execute(empty_database_url, "SELECT to_regclass('tasks')") is None


def test_a_restore_over_a_schema_is_refused(source: Source) -> None:
    done = run("restore", source.file, DATABASE_URL=source.url)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "the database has a schema: restore into an empty database\n"
    assert execute(source.url, "SELECT count(*) FROM tasks") == 5000


def test_a_backup_replaces_no_file(source: Source) -> None:
    before = source.file.read_bytes()
    with pytest.raises(BackupError, match="exists"):
        back_up(source.url, source.file)
    assert source.file.read_bytes() == before


def test_a_backup_that_fails_leaves_no_file(tmp_path: Path, source: Source) -> None:
    """Here by a table that the role may not read."""
    execute(source.url, "CREATE ROLE reader LOGIN PASSWORD 'reader'")
    execute(source.url, "GRANT SELECT ON tasks, task_events TO reader")
    reader = make_url(source.url).set(username="reader", password="reader")  # noqa: S106 - of this test
    try:
        with pytest.raises(BackupError, match="permission denied for table"):
            back_up(reader.render_as_string(hide_password=False), tmp_path / "tasks.dump")
    finally:
        execute(source.url, "DROP OWNED BY reader")
        execute(source.url, "DROP ROLE reader")
    assert not list(tmp_path.iterdir())


def test_the_embedded_database_is_backed_up_and_restored(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path / "one") as postgres:
        schema.upgrade(postgres.url)
    file = tmp_path / "tasks.dump"
    for command, folder in (("backup", "one"), ("restore", "two")):
        done = run(command, file, DATA_DIR=str(tmp_path / folder))
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("0 tasks and 0 events")
