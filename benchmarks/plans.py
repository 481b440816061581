"""What is measured: the quick table, everything, or the same build on several interpreters."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from benchmarks.calls import (
    BATCH_GET,
    FIRST_TABLE,
    GET,
    LIST,
    STATS,
    UPDATE,
    Calls,
    all_calls,
    page_calls,
    token,
)
from benchmarks.database import BenchDatabase, running_database
from benchmarks.goals import MANY_ROWS, ROWS
from benchmarks.node import prepare_node
from benchmarks.processes import running
from benchmarks.results import Pgbench, Results, this_machine
from benchmarks.rounds import Figures, measure
from benchmarks.services.messages import COLUMNS
from benchmarks.subjects import (
    COLLECTOR_PORT,
    ROOT,
    Subject,
    aio_asyncpg,
    empty_method,
    fastapi_orm,
    floor,
    node_grpc,
    running_subject,
    service_by_rest,
    service_off,
    service_on,
)
from benchmarks.watches import measure_watches

_FEW_ROWS = 1_000
_WATCHES = 1_000


@contextmanager
def filled(rows: int) -> Iterator[BenchDatabase]:
    """Run a database of this many tasks, and the collector of traces."""
    print(f"{rows:,} rows", flush=True)
    environment = {"PORT": str(COLLECTOR_PORT), "PYTHONPATH": f"{ROOT}:{ROOT / 'generated'}"}
    collector = (sys.executable, "-m", "benchmarks.services.collector")
    with running_database(rows) as database, running(collector, environment, folder=ROOT):
        yield database


def quick(*, rounds: int, seconds: float, baseline: Path | None) -> Results:
    """Measure five calls, on and off, and those of another checkout if one is given."""
    results = Results("The cost of a call", this_machine())
    services = [empty_method(), floor(), service_on(), service_off()]
    if baseline:
        python = str(baseline / ".venv/bin/python")
        services.append(service_on(name="baseline, on", python=python, folder=baseline))
    with filled(ROWS) as database:
        results.figures = measure(
            services, database, rows=ROWS, rounds=rounds, seconds=seconds, only=FIRST_TABLE
        )
    return results


def by_rest(*, rounds: int, seconds: float) -> Results:
    """Measure the calls by REST beside those by gRPC and those of the FastAPI service."""
    results = Results("REST beside gRPC", this_machine())
    services = [empty_method(), service_on(), service_by_rest(), fastapi_orm()]
    with filled(ROWS) as database:
        results.figures = measure(
            services, database, rows=ROWS, rounds=rounds, seconds=seconds, only=(GET, LIST, STATS)
        )
    return results


def full(*, rounds: int, seconds: float) -> Results:
    """Measure all services and calls, by workers and by rows."""
    results = Results("Benchmarks", this_machine())
    with filled(ROWS) as database:
        results.figures += measure(
            _all_services(results), database, rows=ROWS, rounds=rounds, seconds=seconds
        )
        results.pgbench = _pgbench(database, seconds)
        results.watches = measure_watches(
            database, watches=_WATCHES, rounds=rounds, seconds=seconds
        )
    for rows in (_FEW_ROWS, MANY_ROWS):
        with filled(rows) as database:
            results.figures += _by_rows(database, rows, rounds, seconds)
    return results


def on_pythons(versions: Sequence[str], *, rounds: int, seconds: float) -> Results:
    """Measure the same build on versions of Python; `make bench-python` makes the environments."""
    results = Results("The same build on several versions of Python", this_machine())
    services = []
    for version in versions:
        python = str(ROOT / f".bench/python-{version}/bin/python")
        services.append(empty_method(name=f"empty method, Python {version}", python=python))
        services.append(service_on(name=f"Task Service, Python {version}", python=python))
    with filled(ROWS) as database:
        results.figures = measure(
            services, database, rows=ROWS, rounds=rounds, seconds=seconds, only=FIRST_TABLE
        )
    return results


def _all_services(results: Results) -> list[Subject]:
    """List the services by workers: one, two, and as many as there are cores."""
    compared = [service_on, service_by_rest, service_off, fastapi_orm, aio_asyncpg]
    if reason := prepare_node():
        results.left_out.append(f"Left out: Node, since {reason}.")
    else:
        compared.append(node_grpc)
    services = [empty_method(), floor()]
    for workers in sorted({1, 2, os.cpu_count() or 1}):
        services += [service(workers) for service in compared]
    return services


def _by_rows(database: BenchDatabase, rows: int, rounds: int, seconds: float) -> list[Figures]:
    """Measure the calls that add no rows; with many rows, pages far from the first as well."""
    only = [GET, UPDATE, LIST, STATS, BATCH_GET]
    service = service_on()
    if rows >= MANY_ROWS:
        with running_subject(service, database) as started:
            pages = page_calls(started.address, token())
        only += pages

        def with_pages(ids: Sequence[str]) -> Calls:
            return {**all_calls(ids, token()), **pages}

        service = replace(service, calls=with_pages)
    return measure(
        [empty_method(), service], database, rows=rows, rounds=rounds, seconds=seconds, only=only
    )


def _pgbench(database: BenchDatabase, seconds: float) -> Pgbench:
    (id_,) = database.task_ids(1)
    before = database.processes.cpu_seconds()
    rate, latency, calls = database.pgbench(
        f"SELECT {COLUMNS} FROM tasks WHERE id = '{id_}';",  # noqa: S608
        seconds,
    )
    cpu = database.processes.cpu_seconds() - before
    return Pgbench(rate, latency, cpu / calls * 1e6)
