"""Measure services in interleaved rounds, so that what else the machine does falls on all."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks.calls import CONNECTIONS, EMPTY, GROWING
from benchmarks.database import BenchDatabase
from benchmarks.load import send_load
from benchmarks.subjects import RunningSubject, Subject, running_subject

_WARM_UP_CALLS = 64
_COUNTED_CALLS = 50


@dataclass(frozen=True)
class Spread:
    """The median of all rounds, with the least and the greatest."""

    median: float
    least: float
    greatest: float


@dataclass(frozen=True)
class Figures:
    """What a call cost on a service."""

    service: str
    workers: int
    rows: int
    call: str
    calls_per_second: Spread
    p50_ms: Spread
    p99_ms: Spread
    service_us: Spread
    postgres_us: Spread
    ratio_to_empty: Spread
    """The service's CPU against that of the empty method in the same round."""
    statements: float
    idle_megabytes: float
    loaded_megabytes: float


@dataclass(frozen=True)
class _Sample:
    calls_per_second: float
    p50_ms: float
    p99_ms: float
    service_us: float
    postgres_us: float


_Key = tuple[RunningSubject, str]


def measure(
    subjects: Sequence[Subject],
    database: BenchDatabase,
    *,
    rows: int,
    rounds: int,
    seconds: float,
    only: Sequence[str] = (),
) -> list[Figures]:
    """Run the services side by side; measure one call of one service after another, in rounds.

    The first service is the empty method. `only` selects calls; all by default.
    """
    with ExitStack() as stack:
        running = [stack.enter_context(running_subject(subject, database)) for subject in subjects]
        keys = [
            (service, call)
            for service in running
            for call in service.calls
            if not only or call in (*only, EMPTY)
        ]
        fixed = [key for key in keys if key[1] not in GROWING]
        growing = [keys[0], *(key for key in keys if key[1] in GROWING)]
        figures = _run_rounds(fixed, database, rows, rounds, seconds)
        if len(growing) > 1:
            figures += _run_rounds(growing, database, rows, rounds, seconds)[1:]
        return figures


def _run_rounds(
    keys: Sequence[_Key], database: BenchDatabase, rows: int, rounds: int, seconds: float
) -> list[Figures]:
    """Measure each call once in every round; the first is that of the empty method."""
    statements = {key: _count_statements(key, database) for key in keys}
    samples: dict[_Key, list[_Sample]] = {key: [] for key in keys}
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}, {len(keys)} calls", flush=True)
        for key in keys:
            samples[key].append(_sample(key, database, seconds))
    reference = [sample.service_us for sample in samples[keys[0]]]
    return [_figures(key, samples[key], reference, rows, statements[key]) for key in keys]


def _sample(key: _Key, database: BenchDatabase, seconds: float) -> _Sample:
    service, call = key
    requests = service.calls[call]
    send_load(service.address, requests, connections=CONNECTIONS, calls=_WARM_UP_CALLS)
    before = service.processes.cpu_seconds(), database.processes.cpu_seconds()
    load = send_load(service.address, requests, connections=CONNECTIONS, seconds=seconds)
    after = service.processes.cpu_seconds(), database.processes.cpu_seconds()
    service_us, postgres_us = (
        (end - start) / load.calls * 1e6 for start, end in zip(before, after, strict=True)
    )
    rate = load.calls / load.seconds
    return _Sample(rate, load.p50_ms, load.p99_ms, service_us, postgres_us)


def _count_statements(key: _Key, database: BenchDatabase) -> float:
    """Count the statements, one round trip each, of calls one after another."""
    service, call = key
    with database.counted_statements() as statements:
        send_load(service.address, service.calls[call][:1], connections=1, calls=_COUNTED_CALLS)
    return round(len(statements) / _COUNTED_CALLS, 1)


def _figures(
    key: _Key, samples: Sequence[_Sample], reference: Sequence[float], rows: int, statements: float
) -> Figures:
    service, call = key
    costs = [sample.service_us for sample in samples]
    return Figures(
        service=service.subject.name,
        workers=service.subject.workers,
        rows=rows,
        call=call,
        calls_per_second=spread([sample.calls_per_second for sample in samples]),
        p50_ms=spread([sample.p50_ms for sample in samples]),
        p99_ms=spread([sample.p99_ms for sample in samples]),
        service_us=spread(costs),
        postgres_us=spread([sample.postgres_us for sample in samples]),
        ratio_to_empty=spread([c / e for c, e in zip(costs, reference, strict=True)]),
        statements=statements,
        idle_megabytes=service.idle_megabytes,
        loaded_megabytes=service.processes.largest_megabytes(),
    )


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))
