"""A restored physical backup: clients hold etags and tokens of a lost timeline."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from server.settings import Settings
from storage import schema
from storage.embedded import EmbeddedPostgres
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    BatchCreateTasksRequest,
    CreateTaskRequest,
    GetTaskRequest,
    ListTasksRequest,
    UpdateTaskRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.errors import fails
from tests.support.watching import BOOKMARK, Watch
from tests.support.workers import running_worker

ABORTED, OUT_OF_RANGE = grpc.StatusCode.ABORTED, grpc.StatusCode.OUT_OF_RANGE


class Server:
    """A PostgreSQL that can be copied while it is stopped, and a service on it."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self._folder, self._copy = folder / "data", folder / "copy"
        self._settings = settings
        self._running = ExitStack()

    def start(self) -> TaskServiceStub:
        postgres = EmbeddedPostgres(self._folder)
        url = self._running.enter_context(postgres).url
        schema.upgrade(url)
        channel = self._running.enter_context(running_worker(self._settings, url))
        return TaskServiceStub(channel)

    def stop(self) -> None:
        self._running.close()

    def back_up(self) -> TaskServiceStub:
        """Copies the files of the stopped database."""
        self.stop()
        self._copy_files(self._folder, self._copy)
        return self.start()

    def restore(self) -> TaskServiceStub:
        self.stop()
        shutil.rmtree(self._folder / "postgres")
        self._copy_files(self._copy, self._folder)
        return self.start()

    def _copy_files(self, from_: Path, to: Path) -> None:
        shutil.copytree(from_ / "postgres", to / "postgres")


@pytest.fixture
def server(tmp_path: Path, settings: Settings) -> Iterator[Server]:
    server = Server(tmp_path, settings)
    yield server
    server.stop()


def create(stub: TaskServiceStub, *titles: str) -> list[Task]:
    """Creates the tasks one by one, so that each has a transaction of its own."""
    return [stub.CreateTask(CreateTaskRequest(task=Task(title=title))) for title in titles]


def retitle(stub: TaskServiceStub, task: Task, title: str) -> Task:
    new = Task(id=task.id, title=title, etag=task.etag)
    return stub.UpdateTask(UpdateTaskRequest(task=new))


def test_an_etag_of_the_lost_timeline_lets_no_write_through(server: Server) -> None:
    tasks = create(server.start(), *"abcde")
    stub = server.back_up()
    lost = [retitle(stub, task, "lost") for task in tasks]
    stub = server.restore()
    kept = [retitle(stub, task, "kept") for task in tasks]
    for task in lost:
        with fails(ABORTED, "ETAG_MISMATCH"):
            retitle(stub, task, "overwritten")
    assert [stub.GetTask(GetTaskRequest(id=task.id)) for task in kept] == kept


def token_of(stub: TaskServiceStub) -> str:
    """A token that names the last event so far, settled or not when the watch begins."""
    watch = Watch(stub, send_initial_tasks=True)
    while (response := watch.next()).type != BOOKMARK:
        pass
    watch.cancel()
    return response.resume_token


def written(stub: TaskServiceStub, count: int) -> str:
    """Creates so many tasks, and returns a token that names the last of them."""
    watch = Watch(stub)
    watch.bookmark()
    create(stub, *map(str, range(count)))
    token = watch.changes(count)[-1].resume_token
    watch.cancel()
    return token


@pytest.mark.parametrize("writes_since", [0, 5, 40])
def test_a_token_of_the_lost_timeline_is_out_of_range(server: Server, writes_since: int) -> None:
    """Whether the positions have reached it again or not, and whatever event has its place now."""
    create(server.start(), "before")
    lost = written(server.back_up(), 5)
    stub = server.restore()
    create(stub, *map(str, range(writes_since)))
    with fails(OUT_OF_RANGE, "RESUME_TOKEN_EXPIRED"):
        raise Watch(stub, resume_token=lost).error()


def test_a_token_from_before_the_backup_misses_nothing(server: Server) -> None:
    stub = server.start()
    create(stub, "before")
    token = token_of(stub)
    create(stub, "in the backup")
    create(server.back_up(), "lost")
    stub = server.restore()
    create(stub, "after")
    watch = Watch(stub, resume_token=token)
    assert [change.task.title for change in watch.changes(2)] == ["in the backup", "after"]
    watch.cancel()


def test_a_token_from_before_the_first_write_misses_nothing(server: Server) -> None:
    """It names the horizon, where every timeline begins."""
    token = token_of(server.start())
    create(server.back_up(), "lost")
    stub = server.restore()
    create(stub, "after")
    watch = Watch(stub, resume_token=token)
    assert watch.change().task.title == "after"
    watch.cancel()


def test_a_task_made_again_in_the_new_timeline_has_another_etag(server: Server) -> None:
    server.start()
    lost = server.back_up().CreateTask(CreateTaskRequest(task=Task(title="one")))
    stub = server.restore()
    again = CreateTaskRequest(task=Task(title="one"), task_id=lost.id)
    (made,) = stub.BatchCreateTasks(BatchCreateTasksRequest(requests=[again])).tasks
    with fails(ABORTED, "ETAG_MISMATCH"):
        retitle(stub, lost, "overwritten")
    assert list(stub.ListTasks(ListTasksRequest()).tasks) == [made]
