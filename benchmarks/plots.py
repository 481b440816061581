"""Draw results as SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, cast

import pygal
from pygal.style import CleanStyle

from benchmarks.calls import BATCH_GET, CREATE, EMPTY, FIRST_TABLE, GET, LIST, STATS, UPDATE
from benchmarks.goals import ROWS
from benchmarks.results import Results, distinct
from benchmarks.rounds import Figures
from benchmarks.subjects import ON

_SHARED_CALLS = (GET, CREATE, LIST, STATS)
_CALLS_BY_ROWS = (GET, UPDATE, LIST, STATS, BATCH_GET)


class Chart(Protocol):
    """The part of pygal's charts that is used here: pygal has no types."""

    x_labels: Sequence[str]

    def add(self, title: str, values: Sequence[float | None]) -> None: ...

    def render_to_file(self, path: str) -> None: ...


def draw_plots(results: Results, folder: Path) -> list[str]:
    """Write the plots; return their names."""
    charts = {
        "throughput": _throughput(results),
        "latency": _latency(results),
        "cpu": _cpu(results),
        "rows": _by_rows(results),
    }
    for name, chart in charts.items():
        chart.render_to_file(str(folder / f"{name}.svg"))
    return list(charts)


def _throughput(results: Results) -> Chart:
    chart = _bars("Calls per second: one worker, 100,000 rows", _SHARED_CALLS)
    found = results.of(workers=1, rows=ROWS)
    for service in distinct(figures.service for figures in found if figures.call != EMPTY):
        of_service = [figures for figures in found if figures.service == service]
        chart.add(service, _by_call(of_service, _SHARED_CALLS, lambda f: f.calls_per_second.median))
    return chart


def _latency(results: Results) -> Chart:
    found = results.of(workers=1, rows=ROWS, call=GET)
    services = [figures.service for figures in found]
    chart = _bars("Latency of GetTask in ms: 32 callers, one worker", services)
    chart.add("p50", [figures.p50_ms.median for figures in found])
    chart.add("p99", [figures.p99_ms.median for figures in found])
    return chart


def _cpu(results: Results) -> Chart:
    found = results.of(service=ON, workers=1, rows=ROWS)
    chart = _bars("CPU µs per call: everything on, 100,000 rows", FIRST_TABLE)
    chart.add("service", _by_call(found, FIRST_TABLE, lambda f: f.service_us.median))
    chart.add("PostgreSQL", _by_call(found, FIRST_TABLE, lambda f: f.postgres_us.median))
    return chart


def _by_rows(results: Results) -> Chart:
    """Plot what service and PostgreSQL use together, by the rows in the table."""
    chart = _bars("CPU µs of service and PostgreSQL, by rows", _CALLS_BY_ROWS)
    for rows in sorted({figures.rows for figures in results.figures}):
        found = results.of(service=ON, workers=1, rows=rows)
        total = _by_call(
            found, _CALLS_BY_ROWS, lambda f: f.service_us.median + f.postgres_us.median
        )
        chart.add(f"{rows:,} rows", total)
    return chart


def _by_call(
    found: Sequence[Figures], calls: Sequence[str], value: Callable[[Figures], float]
) -> list[float | None]:
    values = {figures.call: value(figures) for figures in found}
    return [values.get(call) for call in calls]


def _bars(title: str, labels: Sequence[str]) -> Chart:
    """Make a bar chart without scripts."""
    chart = pygal.Bar(
        title=title,
        zero=0,
        margin_bottom=40,
        truncate_label=-1,
        style=CleanStyle,
        js=(),
        height=420,
        legend_at_bottom=True,
        legend_at_bottom_columns=3,
    )
    chart.x_labels = list(labels)
    return cast(Chart, chart)
