"""Making, locking, starting and stopping the embedded PostgreSQL."""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Self
from urllib.parse import quote

from storage.embedded import guard
from storage.embedded.account import (
    MAJOR,
    Account,
    EmbeddedPostgresError,
    account_for,
    find_install,
    give,
    open_way,
    runnable,
)

_TUNING = MappingProxyType({"shared_buffers": "128MB", "max_connections": "100"})
_INITDB = (
    *("--username=tasks", "--auth=trust", "--encoding=UTF8", "--locale=C"),
    *("--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
)
_INHERITED = {"PATH", "LD_LIBRARY_PATH", "PYTHONHOME"}
_MAX_SOCKET_DIR_BYTES = 88  # The address of a socket in it has 103 bytes on macOS, 107 on Linux.
_MAX_LOG_BYTES = 8 * 1024 * 1024
_LOCK_SECONDS = 30.0
_OWNER_SECONDS = 1.0
_INITDB_SECONDS = 120.0
_START_SECONDS = 60.0


class EmbeddedPostgres:
    """The database `tasks` in a PostgreSQL of our own, kept in DATA_DIR, on a unix socket only.

    `settings` are PostgreSQL's, as in postgresql.conf. Workers forked by the service hold the
    guard's pipe as well: PostgreSQL lives until the last of them is gone, or until `stop`.
    """

    def __init__(self, data_dir: Path, *, settings: Mapping[str, str] = _TUNING) -> None:
        self._data_dir = data_dir.resolve()
        self._cluster = self._data_dir / "postgres"
        self._log = self._data_dir / "postgres.log"
        self._socket_dir = _socket_dir(self._data_dir)
        self._settings = {**_TUNING, **settings}
        self._guard: subprocess.Popen[bytes] | None = None
        self._pid = os.getpid()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where SQLAlchemy finds the database; complete, so that no PGPORT can lead it astray."""
        return f"postgresql+psycopg2://tasks@/tasks?host={quote(str(self._socket_dir))}&port=5432"

    def start(self) -> None:
        """Return when the server accepts connections.

        Raises:
            EmbeddedPostgresError: there is no PostgreSQL for this platform, another service uses
                DATA_DIR, or PostgreSQL cannot be created or started there.
        """
        try:
            self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._locked() as lock, self._open_log() as log:
                began = log.tell()
                self._guard = self._launch(lock, log)
            self._await_ready(self._guard, began)
        except BaseException as error:
            self.stop()
            if isinstance(error, OSError | subprocess.SubprocessError):
                raise EmbeddedPostgresError(
                    f"The embedded database in {self._data_dir} cannot be used: {error}."
                ) from error
            raise

    def stop(self) -> None:
        """Shut PostgreSQL down and wait for its end; without effect where none was started."""
        if self._guard is None or self._pid != os.getpid():
            return  # Nothing to stop, or a forked worker, to which PostgreSQL does not belong.
        guard, self._guard = self._guard, None
        guard.terminate()
        guard.communicate()  # Bounded: the guard's own patience with PostgreSQL is.
        shutil.rmtree(self._socket_dir, ignore_errors=True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """The lock's descriptor; closed at the end, when the guard and PostgreSQL hold the lock."""
        lock = os.open(self._data_dir / "postgres.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            self._await_lock(lock)
            os.ftruncate(lock, 0)
            os.pwrite(lock, str(os.getpid()).encode(), 0)
            yield lock
        finally:
            os.close(lock)

    def _await_lock(self, lock: int) -> None:
        """Wait for the end of a PostgreSQL whose service is gone; refuse to share a live one's.

        The guard wipes the pid as soon as its service is gone, so the pid of a dead service,
        given to another process or not, does not stay there.
        """
        began = time.monotonic()
        while not _try_lock(lock):
            waited = time.monotonic() - began
            owner = os.pread(lock, 32, 0).decode()
            if waited > _OWNER_SECONDS and owner.isdigit() and _is_alive(int(owner)):
                raise EmbeddedPostgresError(
                    f"Another service (pid {owner}) is using the database in {self._data_dir}; "
                    "stop it, or set another DATA_DIR."
                )
            if waited > _LOCK_SECONDS:
                raise EmbeddedPostgresError(
                    f"The PostgreSQL of an earlier service is still running in {self._data_dir}; "
                    "end it, or set another DATA_DIR."
                )
            time.sleep(0.05)

    def _open_log(self) -> BinaryIO:
        if self._log.exists() and self._log.stat().st_size > _MAX_LOG_BYTES:
            self._log.replace(self._log.with_suffix(".log.1"))
        self._log.touch(mode=0o600)
        return self._log.open("ab")

    def _launch(self, lock: int, log: BinaryIO) -> subprocess.Popen[bytes]:
        """Start the guard, which starts PostgreSQL."""
        install = find_install()
        account = account_for(self._cluster, self._data_dir)
        open_way(self._data_dir, account)
        install = runnable(install, account, self._data_dir / f"postgresql-{MAJOR}")
        if not (self._cluster / "PG_VERSION").exists():
            self._create_cluster(install, account, lock, log)
        self._check_cluster(account)
        _make_socket_dir(self._socket_dir, account)
        settings = self._settings | {
            "listen_addresses": "",
            "unix_socket_directories": '"{}"'.format(str(self._socket_dir).replace('"', '""')),
            "unix_socket_permissions": "0700",
        }
        postgres = [*account.prefix, str(install / "bin/postgres"), "-D", str(self._cluster)]
        for name, value in settings.items():
            postgres += ["-c", f"{name}={value}"]
        return subprocess.Popen(  # noqa: S603 - our interpreter and the wheel's program
            [sys.executable, "-P", guard.__file__, str(lock), str(self._socket_dir), *postgres],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=_environment(),
            pass_fds=[lock],
            start_new_session=True,  # Ctrl-C at a terminal is for the service, which drains first.
        )

    def _create_cluster(self, install: Path, account: Account, lock: int, log: BinaryIO) -> None:
        """Make the cluster under another name: killed midway, nothing half-made is in the way."""
        new = self._cluster.with_suffix(".new")
        if new.exists():
            shutil.rmtree(new)
        new.mkdir(mode=0o700)
        give(new, account)
        sync = ["--no-sync"] if self._settings.get("fsync") == "off" else []
        single = ("--single", "-c", "exit_on_error=on", "-D", str(new), "template1")
        for command, statement in (
            (["initdb", *_INITDB, *sync, "-D", str(new)], b""),
            (["postgres", *single], b"CREATE DATABASE tasks"),
        ):
            began = log.tell()
            done = subprocess.run(  # noqa: S603 - the wheel's programs
                [*account.prefix, str(install / "bin" / command[0]), *command[1:]],
                check=False,
                cwd="/",
                input=statement,
                stdout=log,
                stderr=log,
                env=_environment(),
                pass_fds=[lock],
                timeout=_INITDB_SECONDS,
            )
            if done.returncode != 0:
                raise self._failure("create its database", began)
        new.rename(self._cluster)
        folder = os.open(self._data_dir, os.O_RDONLY)
        os.fsync(folder)  # Else a power cut could undo the rename, and with it all that followed.
        os.close(folder)

    def _check_cluster(self, account: Account) -> None:
        """The cluster is of our version, in the account's hands, and has no stale pid file."""
        version = (self._cluster / "PG_VERSION").read_text().strip()
        if version != MAJOR:
            raise EmbeddedPostgresError(
                f"The database in {self._cluster} is of PostgreSQL {version}, not {MAJOR}; "
                "move it away, or set DATABASE_URL to a server that has it."
            )
        give(self._cluster, account)
        (self._cluster / "postmaster.pid").unlink(missing_ok=True)

    def _await_ready(self, guard: subprocess.Popen[bytes], began: int) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not self._is_ready():
            if guard.poll() is not None or time.monotonic() > deadline:
                raise self._failure("start", began)
            time.sleep(0.02)
        if guard.stdin is not None:
            guard.stdin.write(b"+")  # From now on a PostgreSQL that dies is started again.

    def _is_ready(self) -> bool:
        try:
            lines = (self._cluster / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[7].strip() == "ready"

    def _failure(self, what: str, began: int) -> EmbeddedPostgresError:
        """An error that quotes the reason PostgreSQL logged since `began`."""
        said = self._log.read_bytes()[began:].decode(errors="replace").strip()
        match = re.search(r"(?:FATAL|PANIC|error): +(.+)", said)
        reason = match[1] if match else said.rpartition("\n")[2] or "it said nothing"
        return EmbeddedPostgresError(f"PostgreSQL could not {what}: {reason} (see {self._log}).")


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # Of another user, but running.
    return True


def _environment() -> dict[str, str]:
    """What programs need to be found and run, and nothing else of ours: the guard and PostgreSQL
    show their environment to this user's other processes, and ours has secrets."""
    kept = {name: value for name, value in os.environ.items() if name in _INHERITED}
    return kept | {"LANG": "C", "LC_ALL": "C", "TZ": "UTC"}


def _socket_dir(data_dir: Path) -> Path:
    """A short folder of this user's for the socket: the address of a socket is limited."""
    name = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
    try:
        parent = Path(tempfile.gettempdir()).resolve()
    except OSError as error:
        raise EmbeddedPostgresError(
            "The embedded database needs a folder that can be written: set TMPDIR to one, "
            "or DATABASE_URL to a server."
        ) from error
    folder = parent / f"task-service-{os.geteuid()}-{name}"
    # A comma would part two hosts in a connection string.
    if len(os.fsencode(folder)) > _MAX_SOCKET_DIR_BYTES or "," in str(folder):
        return Path("/tmp").resolve() / folder.name  # noqa: S108 - made and checked as private
    return folder


def _make_socket_dir(folder: Path, account: Account) -> None:
    """Make the folder, or empty the one of a killed service: its socket's lock names a stale pid.

    Raises:
        EmbeddedPostgresError: the name is a folder of another user, or a link.
    """
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        status = folder.lstat()
        ours = status.st_uid in (os.geteuid(), account.uid)
        if not (ours and status.st_mode == stat.S_IFDIR | 0o700):
            raise EmbeddedPostgresError(
                f"{folder} is not a private folder of this user's, as the database needs it; "
                "remove it, or set another TMPDIR."
            ) from None
        for leftover in folder.iterdir():
            leftover.unlink()
    give(folder, account)
