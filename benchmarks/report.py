"""Write results as tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks.calls import CONNECTIONS
from benchmarks.goals import Goal, goals
from benchmarks.results import Results
from benchmarks.rounds import Figures, Spread

_METHOD = f"""\
{CONNECTIONS} connections with one call in flight each, from h2load. A figure is the median of
all rounds, with the least and the greatest in parentheses. The services run side by side and are
measured in turns. CPU is that of all processes of the service, or of PostgreSQL, divided by the
calls; "x empty" is the CPU of the service against that of an empty method of plain grpcio in the
same round. "On" is JWT, rate limit, admission, a JSON log line and 10 % of calls traced; "off" is
none of these.
"""


def write_markdown(results: Results, path: Path, plots: Iterable[str] = ()) -> None:
    parts = [
        f"# {results.title}",
        _METHOD,
        ", ".join(f"{name} {value}" for name, value in results.machine.items()) + ".",
        *results.left_out,
        *_goal_section(goals(results)),
        *(f"![{name}]({name}.svg)" for name in plots),
        *_sections(results),
    ]
    path.write_text("\n\n".join(part.strip() for part in parts) + "\n")


def _sections(results: Results) -> Iterator[str]:
    """Give a table for each number of rows and of workers."""
    for rows in sorted({figures.rows for figures in results.figures}):
        for workers in sorted({figures.workers for figures in results.of(rows=rows)}):
            workers_name = "one worker" if workers == 1 else f"{workers} workers"
            yield f"## {rows:,} rows, {workers_name}"
            yield _figures_table(results.of(rows=rows, workers=workers))
    if results.pgbench:
        yield "## The query of GetTask alone"
        yield _table(
            ("pgbench, prepared, 4 connections", "calls/s", "mean ms", "PostgreSQL µs"),
            [("", *map(_number, vars(results.pgbench).values()))],
        )
    if results.watches:
        yield "## Watches"
        yield _watch_table(results)
    yield "## Memory of a worker"
    yield _memory_table(results)


def _goal_section(found: Sequence[Goal]) -> Iterator[str]:
    if found:
        yield "## Goals"
        rows = [
            (
                goal.name,
                f"{goal.value:.2f}",
                f"{'≥' if goal.at_least else '≤'} {goal.goal:g}",
                "yes" if goal.is_reached else "no",
            )
            for goal in found
        ]
        yield _table(("", "value", "goal", "reached"), rows)


def _figures_table(found: Sequence[Figures]) -> str:
    header = ("service", "call", "calls/s", "p50 ms", "p99 ms", "service µs", "PostgreSQL µs")
    rows = [
        (
            figures.service,
            figures.call,
            _spread(figures.calls_per_second),
            _number(figures.p50_ms.median),
            _number(figures.p99_ms.median),
            _spread(figures.service_us),
            _spread(figures.postgres_us),
            f"{figures.ratio_to_empty.median:.2f}",
            f"{figures.statements:g}",
        )
        for figures in found
    ]
    return _table((*header, "x empty", "round trips"), rows)


def _watch_table(results: Results) -> str:
    watches = results.watches
    if watches is None:
        return ""
    return _table(
        ("", "value"),
        [
            (
                f"GetTask with {watches.watches} watches open: CPU against none",
                _spread(watches.get_cost_ratio),
            ),
            ("the same: throughput", _spread(watches.get_rate_ratio)),
            ("KiB for each watch", _number(watches.kilobytes_per_watch)),
            ("changes delivered each second", _number(watches.changes_per_second)),
            ("CPU µs for each change delivered", _number(watches.us_per_change)),
        ],
    )


def _memory_table(results: Results) -> str:
    first = {
        (figures.service, figures.workers, figures.rows): figures for figures in results.figures
    }
    rows = [
        (service, str(workers), f"{rows:,}", f"{f.idle_megabytes:.0f}", f"{f.loaded_megabytes:.0f}")
        for (service, workers, rows), f in first.items()
    ]
    return _table(("service", "workers", "rows", "idle MB", "after load MB"), rows)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _spread(spread: Spread) -> str:
    least, greatest = _number(spread.least), _number(spread.greatest)
    return f"{_number(spread.median)} ({least}-{greatest})"


def _number(value: float) -> str:
    """Write three significant digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
