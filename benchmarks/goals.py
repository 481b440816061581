"""Compare the results with the goals: ratios of figures of one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.calls import CREATE, DEEP, FIRST, GET, LIST, STATS, UPDATE
from benchmarks.results import Results
from benchmarks.rounds import Figures
from benchmarks.subjects import FASTAPI, NODE, OFF, ON

ROWS, MANY_ROWS = 100_000, 1_000_000

_MOST_CPU = {GET: 1.6, CREATE: 2.2, UPDATE: 2.8, LIST: 4.0}
_LEAST_SPEEDUP = {GET: 5.0, CREATE: 6.0, LIST: 5.0, STATS: 50.0}


@dataclass(frozen=True)
class Goal:
    """A goal, and the value that a run gave."""

    name: str
    value: float
    goal: float
    at_least: bool = False

    @property
    def is_reached(self) -> bool:
        return self.value >= self.goal if self.at_least else self.value <= self.goal


def goals(results: Results) -> list[Goal]:
    """Return the goals for which the run has figures."""
    return [*_costs(results), *_sizes(results), *_speedups(results), *_of_a_worker(results)]


def _costs(results: Results) -> Iterator[Goal]:
    for call, most in _MOST_CPU.items():
        for figures in results.of(service=ON, workers=1, rows=ROWS, call=call):
            value = figures.ratio_to_empty.median
            yield Goal(f"{call}, on: CPU against the empty method", value, most)
    on, off = (results.of(service=s, workers=1, rows=ROWS, call=GET) for s in (ON, OFF))
    yield from _goal("GetTask: CPU of on against off", on, off, _cpu, 1.25)


def _sizes(results: Results) -> Iterator[Goal]:
    stats, get = (results.of(service=ON, rows=MANY_ROWS, call=c) for c in (STATS, GET))
    yield from _goal("GetTaskStats at 1M rows: CPU against GetTask", stats, get, _cpu, 1.3)
    for first in results.figures:
        if first.call.endswith(FIRST):
            deep = results.of(rows=first.rows, call=first.call.replace(FIRST, DEEP))
            name = f"Lists by {first.call.replace(FIRST, DEEP)} against page 1: p50"
            yield from _goal(name, deep, [first], lambda figures: figures.p50_ms.median, 1.2)


def _speedups(results: Results) -> Iterator[Goal]:
    for workers in sorted({figures.workers for figures in results.of(service=FASTAPI)}):
        for call, least in _LEAST_SPEEDUP.items():
            ours, theirs = _alike(results, FASTAPI, workers, call)
            name = f"{call}, {_workers(workers)}: throughput against FastAPI"
            yield from _goal(name, ours, theirs, _rate, least, at_least=True)
        ours, theirs = _alike(results, NODE, workers, GET)
        name = f"GetTask, {_workers(workers)}: throughput against Node"
        yield from _goal(name, ours, theirs, _rate, 1.0, at_least=True)


def _workers(count: int) -> str:
    return "one worker" if count == 1 else f"{count} workers"


def _alike(results: Results, other: str, workers: int, call: str) -> list[list[Figures]]:
    services = ON, other
    return [results.of(service=s, workers=workers, rows=ROWS, call=call) for s in services]


def _of_a_worker(results: Results) -> Iterator[Goal]:
    for figures in results.of(service=ON, workers=1, rows=ROWS, call=GET):
        yield Goal("Memory of an idle worker, MB", figures.idle_megabytes, 80)
        value = figures.p99_ms.median / figures.p50_ms.median
        yield Goal("GetTask with 32 callers: p99 against p50", value, 2.0)


def _goal(
    name: str,
    ours: list[Figures],
    reference: list[Figures],
    value: Callable[[Figures], float],
    goal: float,
    *,
    at_least: bool = False,
) -> Iterator[Goal]:
    """Yield the goal for a ratio, if the run has both figures."""
    if ours and reference:
        yield Goal(name, value(ours[0]) / value(reference[0]), goal, at_least)


def _cpu(figures: Figures) -> float:
    return figures.service_us.median


def _rate(figures: Figures) -> float:
    return figures.calls_per_second.median
