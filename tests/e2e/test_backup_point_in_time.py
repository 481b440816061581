"""A base backup and archived WAL: the database as it was just before an accident."""

from __future__ import annotations

from pathlib import Path

from server.settings import Settings
from storage import schema
from storage.embedded import EmbeddedPostgres
from taskservice.v1.task_service_pb2 import BatchGetTasksRequest
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.base_backups import await_primary, base_backup
from tests.support.postgres import execute
from tests.support.service import wait_until
from tests.support.watching import Watch, create, update
from tests.support.workers import running_worker


def archive_all(server: EmbeddedPostgres) -> None:
    """Wait until all WAL so far is in the archive."""
    last = execute(server.url, "SELECT pg_walfile_name(pg_switch_wal())")
    archived = "SELECT last_archived_wal FROM pg_stat_archiver"
    wait_until(lambda: (execute(server.url, archived) or "") >= last, "the WAL is archived")


def test_the_database_is_restored_to_the_moment_before_an_accident(
    tmp_path: Path, settings: Settings
) -> None:
    """Tasks, etags and resume tokens of before stay valid, those after the base backup too."""
    archive = tmp_path / "archive"
    archive.mkdir()
    archiving = {"archive_mode": "on", "archive_command": f"cp %p {archive}/%f"}
    with EmbeddedPostgres(tmp_path / "lost", settings=archiving) as lost:
        schema.upgrade(lost.url)
        with running_worker(settings, lost.url) as channel:
            stub = TaskServiceStub(channel)
            tasks = create(stub, "before the base backup")
            base_backup(lost, tmp_path / "restored")
            watch = Watch(stub)
            token = watch.bookmark()
            watch.cancel()
            tasks += create(stub, "after the base backup")
        moment = execute(lost.url, "SELECT clock_timestamp()::text")
        execute(lost.url, "DELETE FROM tasks")
        archive_all(lost)
    (tmp_path / "restored" / "postgres" / "recovery.signal").touch()
    recovery = {
        "restore_command": f"cp {archive}/%f %p",
        "recovery_target_time": moment,
        "recovery_target_action": "promote",
    }
    with EmbeddedPostgres(tmp_path / "restored", settings=recovery) as restored:
        await_primary(restored)
        with running_worker(settings, restored.url) as channel:
            stub = TaskServiceStub(channel)
            found = stub.BatchGetTasks(BatchGetTasksRequest(ids=[task.id for task in tasks]))
            assert list(found.tasks) == tasks
            assert update(stub, tasks[1], title="and written again").etag != tasks[1].etag
            watch = Watch(stub, resume_token=token)
            titles = [change.task.title for change in watch.changes(2)]
            watch.cancel()
            assert titles == ["after the base backup", "and written again"]
