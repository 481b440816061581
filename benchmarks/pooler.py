"""Measure what PgBouncer adds to a statement: `python -m benchmarks.pooler`.

One session reads and creates tasks through the repository, in turns with and without PgBouncer.
CPU depends less than time on what else the machine does.
"""

from __future__ import annotations

import statistics
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.processes import ProcessTree
from storage import schema
from storage.database import Database
from storage.embedded import EmbeddedPostgres
from storage.repository import TaskRepository
from tests.support.pooler import running_pgbouncer
from tests.support.postgres import postmaster
from tests.support.watching import create_by_hand

_ROUNDS, _READS, _WRITES = 4, 2000, 400


def main() -> None:
    """Print the medians of the rounds."""
    used: dict[tuple[str, str], list[float]] = defaultdict(list)
    with databases() as (ways, postgres):
        task_id = created(next(iter(ways.values())))
        for _ in range(_ROUNDS):
            for way, repository in ways.items():
                get, create = partial(repository.get, task_id), partial(created, repository)
                used[way, "GetTask"].append(cost(postgres, _READS, get))
                used[way, "CreateTask"].append(cost(postgres, _WRITES, create))
    for (way, call), values in used.items():
        least, median, greatest = min(values), statistics.median(values), max(values)
        print(f"{call} {way}: PostgreSQL {median:.0f} µs ({least:.0f} to {greatest:.0f})")


@contextmanager
def databases() -> Iterator[tuple[dict[str, TaskRepository], ProcessTree]]:
    """Yield repositories on one server, with and without a pooler, and the server's processes."""
    with (
        TemporaryDirectory() as folder,
        EmbeddedPostgres(Path(folder), settings={"fsync": "off"}) as embedded,
    ):
        schema.upgrade(embedded.url)
        with (
            running_pgbouncer(Path(folder) / "pooler", embedded.url, {}) as pooled_url,
            closing(Database(embedded.url)) as direct,
            closing(Database(pooled_url)) as pooled,
        ):
            ways = {"direct": TaskRepository(direct), "by PgBouncer": TaskRepository(pooled)}
            yield ways, ProcessTree([postmaster(embedded.data_dir).pid])


def created(repository: TaskRepository) -> str:
    return create_by_hand(repository, str(uuid.uuid4())).id


def cost(processes: ProcessTree, count: int, call: Callable[[], object]) -> float:
    """Return the CPU that one of so many calls uses, in microseconds."""
    before = processes.cpu_seconds()
    for _ in range(count):
        call()
    return (processes.cpu_seconds() - before) / count * 1e6


if __name__ == "__main__":
    main()
