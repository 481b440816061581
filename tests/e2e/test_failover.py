"""A primary that dies, and its standby that takes over, behind a URL that names both."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import grpc
import pytest

from storage import schema
from storage.embedded import EmbeddedPostgres
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import CreateTaskRequest
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.base_backups import base_backup
from tests.support.postgres import execute, postmaster
from tests.support.service import ServiceProcess, await_ready, is_gone, kill_all, wait_until
from tests.support.watching import Watch

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


class Servers:
    """A primary with a synchronous standby: a commit is acknowledged when both have it."""

    def __init__(self, primary: EmbeddedPostgres, standby: EmbeddedPostgres) -> None:
        self.primary, self.standby = primary, standby
        hosts = (quote(str(server.socket_dir), safe="") for server in (primary, standby))
        address = ",".join(f"{host}:5432" for host in hosts)
        self.url = f"postgresql://tasks@{address}/tasks?target_session_attrs=read-write"

    def kill_primary(self) -> None:
        first = postmaster(self.primary.data_dir)
        processes = [first, *first.children()]
        kill_all(processes)
        wait_until(lambda: all(map(is_gone, processes)), "the primary has ended")

    def promote_standby(self) -> None:
        execute(self.standby.url, "SELECT pg_promote()")


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    with EmbeddedPostgres(tmp_path / "primary") as primary:
        schema.upgrade(primary.url)
        base_backup(primary, tmp_path / "standby", "--write-recovery-conf")
        with EmbeddedPostgres(tmp_path / "standby") as standby:
            execute(primary.url, "ALTER SYSTEM SET synchronous_standby_names = '*'")
            execute(primary.url, "SELECT pg_reload_conf()")
            synchronous = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"
            wait_until(lambda: execute(primary.url, synchronous), "the standby is synchronous")
            yield Servers(primary, standby)


class Writer:
    """Create tasks one by one; repeat what fails as unavailable, with its request id."""

    def __init__(self, stub: TaskServiceStub) -> None:
        self._stub = stub
        self._ended = threading.Event()
        self.acknowledged: list[str] = []
        self.failures = 0

    @contextmanager
    def writing(self) -> Iterator[None]:
        thread = threading.Thread(target=self._write)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def await_more(self) -> None:
        enough = len(self.acknowledged) + 20
        wait_until(lambda: len(self.acknowledged) > enough, "more writes are acknowledged")

    def _write(self) -> None:
        while not self._ended.is_set():
            task = Task(title="a task")
            request = CreateTaskRequest(task=task, request_id=str(uuid.uuid4()))
            while (answer := self._create(request)) is None:
                self.failures += 1
                self._ended.wait(0.05)
            self.acknowledged.append(answer.id)

    def _create(self, request: CreateTaskRequest) -> Task | None:
        try:
            return self._stub.CreateTask(request)
        except grpc.RpcError as error:
            if error.code() is not UNAVAILABLE:
                raise
            return None


def test_no_acknowledged_write_is_lost_when_the_primary_dies(
    servers: Servers, start_service: Callable[..., ServiceProcess]
) -> None:
    """The service finds the new primary by itself, and a watch misses no change."""
    service = start_service(ENVIRONMENT="staging", DATABASE_URL=servers.url, WORKERS="1")
    await_ready(service.channel())
    watch = Watch(service.stub())
    token = watch.bookmark()
    writer = Writer(service.stub())
    with writer.writing():
        writer.await_more()
        servers.kill_primary()
        wait_until(lambda: writer.failures, "writes fail")
        servers.promote_standby()
        writer.await_more()
    await_ready(service.channel())
    watch.cancel()
    watch = Watch(service.stub(), resume_token=token)
    seen = [change.task.id for change in watch.changes(len(writer.acknowledged))]
    watch.cancel()
    assert seen == writer.acknowledged
