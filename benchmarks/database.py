"""Run a PostgreSQL filled with tasks; count its statements, and measure it alone with pgbench."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
from sqlalchemy import NullPool, create_engine, make_url, text

from benchmarks.processes import ProcessTree
from storage import schema
from storage.embedded import EmbeddedPostgres

# More than the defaults: all services keep their connections, and a million rows stay in memory.
_SETTINGS = {"max_connections": "400", "shared_buffers": "1GB", "max_wal_size": "4GB"}

_FILL = """
INSERT INTO tasks (id, title, description, status, priority, assigned_to, due_date, tags,
                   created_by, created_at, completed_at)
SELECT gen_random_uuid(), 'task ' || n, 'what the task ' || n || ' is about', 1 + n % 4,
       1 + n / 4 % 4, 'person ' || n % 50,
       CASE n % 2 WHEN 0 THEN now() + (n - :rows / 2) * interval '1 minute' END,
       ARRAY['tag ' || n % 20], 'benchmark', now() - n * interval '1 second',
       CASE n % 4 WHEN 2 THEN now() END
FROM generate_series(1, :rows) AS n
"""
# The service does not write a change that alters nothing, and h2load repeats one request: the title
# is stored with an addition, so that the same title is a change again.
_TRIGGER = """
CREATE FUNCTION add_to_title() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.title := NEW.title || ' ' || pg_current_xact_id();
    RETURN NEW;
END $$;
CREATE TRIGGER add_to_title BEFORE UPDATE OF title ON tasks
FOR EACH ROW EXECUTE FUNCTION add_to_title()
"""
_LOGGED = re.compile(r"(?:statement|execute [^:]*): ")
_TPS = re.compile(r"tps = ([\d.]+)")
_RUN = re.compile(r"transactions actually processed: (\d+)")
_LATENCY = re.compile(r"latency average = ([\d.]+) ms")


class BenchDatabase:
    """A running PostgreSQL, and its log."""

    def __init__(self, postgres: EmbeddedPostgres, folder: Path) -> None:
        self.url = make_url(postgres.url).render_as_string(hide_password=False)
        self.host = str(make_url(postgres.url).query["host"])
        self._log = folder / "postgres.log"
        server = int((folder / "postgres/postmaster.pid").read_text().split()[0])
        self.processes = ProcessTree([server])
        self._pgbench = Path(psutil.Process(server).exe()).with_name("pgbench")
        self._engine = create_engine(self.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables by which clients find it."""
        user = {"PGUSER": "tasks", "PGDATABASE": "tasks"}
        return {"DATABASE_URL": self.url, "PGHOST": self.host, "PGPORT": "5432", **user}

    def fill(self, rows: int) -> None:
        """Create tasks of every status and priority, half of them with a due date."""
        with self._engine.connect() as connection:
            connection.execute(text(_FILL), {"rows": rows})
            connection.execute(text(_TRIGGER))
            connection.execute(text("VACUUM ANALYZE"))
            connection.execute(text("CHECKPOINT"))

    def task_ids(self, count: int) -> list[str]:
        with self._engine.connect() as connection:
            ids = connection.execute(text("SELECT id FROM tasks LIMIT :n"), {"n": count})
            return [str(id_) for (id_,) in ids]

    @contextmanager
    def counted_statements(self) -> Iterator[list[str]]:
        """Collect the statements that are received meanwhile."""
        statements: list[str] = []
        self._set("SET log_statement = 'all'")
        time.sleep(0.2)  # Backends read the settings before their next statement.
        start = self._log.stat().st_size
        try:
            yield statements
        finally:
            with self._log.open(errors="replace") as log:
                log.seek(start)
                statements += _LOGGED.findall(log.read())
            self._set("RESET log_statement")

    def _set(self, setting: str) -> None:
        with self._engine.connect() as connection:
            connection.execute(text(f"ALTER SYSTEM {setting}"))
            connection.execute(text("SELECT pg_reload_conf()"))

    def pgbench(self, statement: str, seconds: float) -> tuple[float, float, int]:
        """Run a statement on four connections; return its rate, its mean ms, and how many ran."""
        with TemporaryDirectory() as folder:
            script = Path(folder) / "statement.sql"
            script.write_text(statement)
            pgbench = [str(self._pgbench), "--no-vacuum", "--protocol=prepared"]
            load = ["--client=4", "--jobs=1", f"--time={max(1, round(seconds))}"]
            where = [f"--file={script}", f"--host={self.host}", "--username=tasks", "tasks"]
            output = subprocess.run(
                [*pgbench, *load, *where], check=True, capture_output=True, text=True
            ).stdout
        return _number(_TPS, output), _number(_LATENCY, output), int(_number(_RUN, output))


def _number(pattern: re.Pattern[str], output: str) -> float:
    found = pattern.search(output)
    if found is None:
        raise ValueError(f"pgbench printed no {pattern.pattern!r}:\n{output}")
    return float(found[1])


@contextmanager
def running_database(rows: int) -> Iterator[BenchDatabase]:
    """Run a PostgreSQL of the newest schema with this many tasks."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        with EmbeddedPostgres(folder, settings=_SETTINGS) as postgres:
            schema.upgrade(postgres.url)
            database = BenchDatabase(postgres, folder)
            database.fill(rows)
            yield database
