"""Back up the database to a file, and restore such a file into an empty database.

`make backup FILE=tasks.dump` and `make restore FILE=tasks.dump`, with the settings of the service.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, NullPool, make_url, text
from sqlalchemy.exc import DBAPIError

from server.settings import Settings, SettingsError
from storage import schema
from storage.embedded import EmbeddedPostgres, EmbeddedPostgresError, program
from storage.errors import DatabaseUnavailableError
from storage.session import make_engine

_COUNTS = text("SELECT (SELECT count(*) FROM tasks), (SELECT count(*) FROM task_events)")
_REFUSALS = SettingsError, schema.SchemaError, DatabaseUnavailableError, EmbeddedPostgresError


class BackupError(Exception):
    """There is no backup, or it cannot be restored here; the text is for the operator."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return 0, or 1 for a failure."""
    parser = argparse.ArgumentParser(prog="backup", description=__doc__)
    parser.add_argument("command", choices=["backup", "restore"])
    parser.add_argument("file", type=Path)
    options = parser.parse_args(arguments)
    run = {"backup": back_up, "restore": restore}[options.command]
    try:
        with _database(Settings.load()) as url:
            done = run(url, options.file)
    except DBAPIError as error:
        return _failed(error.orig)
    except (BackupError, OSError, *_REFUSALS) as error:
        return _failed(error)
    sys.stdout.write(f"{done}\n")
    return 0


def _failed(error: BaseException | None) -> int:
    sys.stderr.write(f"{str(error).strip()}\n")
    return 1


def back_up(url: str, file: Path) -> str:
    """Write the rows of one moment to a file, while clients write. Raises: BackupError."""
    if file.exists():
        raise BackupError(f"{file} exists")
    unfinished = file.with_name(f"{file.name}.unfinished")
    unfinished.touch(mode=0o600)
    try:
        with _snapshot(url) as (connection, snapshot):
            counts = _counts(connection)
            dump = [f"--snapshot={snapshot}", "--format=custom", f"--file={unfinished}"]
            _run(connection, "pg_dump", *dump, *_address(url))
            _run(connection, "pg_restore", "--file=/dev/null", str(unfinished))  # Reads all of it.
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)
    return f"{counts} are in {file}"


def restore(url: str, file: Path) -> str:
    """Restore a backup into an empty database, whole or not at all. Raises: BackupError."""
    with _connection(url) as connection:
        if not schema.is_empty(connection):
            raise BackupError("the database has a schema: restore into an empty database")
        once = ["--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges"]
        _run(connection, "pg_restore", *once, *_address(url), str(file))
    schema.upgrade(url)
    with _connection(url) as connection:
        return f"{_counts(connection)} are restored from {file}"


@contextmanager
def _database(settings: Settings) -> Iterator[str]:
    """Yield the URL of PostgreSQL itself, or of the embedded one, started and left as it is."""
    if url := settings.direct_database_url or settings.explicit_database_url:
        yield url
    else:
        with EmbeddedPostgres(settings.data_dir) as embedded:
            yield embedded.url


@contextmanager
def _connection(url: str) -> Iterator[Connection]:
    engine = make_engine(url, poolclass=NullPool, isolation_level="REPEATABLE READ")
    with engine.connect() as connection:
        yield connection


@contextmanager
def _snapshot(url: str) -> Iterator[tuple[Connection, str]]:
    """Yield a connection and the name of what it sees, for pg_dump to see the same."""
    with _connection(url) as connection:
        yield connection, connection.execute(text("SELECT pg_export_snapshot()")).scalar_one()


def _counts(connection: Connection) -> str:
    tasks, events = connection.execute(_COUNTS).one()
    return f"{tasks} tasks and {events} events"


def _address(url: str) -> list[str]:
    """Return the URL as an argument of libpq's programs, without the password."""
    to = make_url(url)._replace(drivername="postgresql", password=None)  # set() ignores None.
    return [f"--dbname={to.render_as_string()}"]


def _run(connection: Connection, name: str, *arguments: str) -> None:
    """Run a program of PostgreSQL. Raises: BackupError, with what it reports."""
    password = connection.engine.url.password
    environment = os.environ | ({"PGPASSWORD": str(password)} if password else {})
    command = [_program(connection, name), "--no-password", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        raise BackupError(done.stderr.strip())


def _program(connection: Connection, name: str) -> str:
    """Find a program as new as the server: on the PATH, or else that of the embedded PostgreSQL.

    In this order, as servers before 17 refuse what pg_restore 17 sends. Raises: BackupError.
    """
    wanted = int(connection.execute(text("SHOW server_version_num")).scalar_one()) // 10_000
    path = shutil.which(name)
    if path is not None and _major(path) >= wanted:
        return path
    try:
        return program(name)
    except EmbeddedPostgresError:
        raise BackupError(f"install {name} of PostgreSQL {wanted} or newer") from None


def _major(path: str) -> int:
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout  # noqa: S603
    return int(said.split()[2].partition(".")[0])


if __name__ == "__main__":
    sys.exit(main())
