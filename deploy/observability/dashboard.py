"""The dashboard for 3 a.m.; `python -m deploy.observability.dashboard` writes it for Grafana.

From top to bottom it answers: is the promise to callers kept, what do they get, how long do they
wait, what is full, what does the database do, how are watches and tasks, what are the processes. A
test holds each query to what Prometheus finds in a service that runs.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from grafana_foundation_sdk.builders import common, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
    DatasourceVariable,
    QueryVariable,
    Row,
    ThresholdsConfig,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueTextMode,
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

FILE = Path(__file__).parent / "grafana" / "task-service.json"

_PROMETHEUS = DataSourceRef(type_val="prometheus", uid="${datasource}")

# What these words of a query stand for.
_WORDS = {
    "JOB": 'job=~"$job"',
    "HERE": 'job=~"$job", instance=~"$instance"',
    "METHOD": 'grpc_method=~"$method"',
    "OURS": 'grpc_status=~"UNKNOWN|INTERNAL|UNAVAILABLE|DATA_LOSS|DEADLINE_EXCEEDED"',
    "RATE": "$__rate_interval",
}

_WIDTH = 24
_EXEMPLARS = (
    "A dot is a traced call. It leads to the trace when the data source has a link for the label "
    "trace_id."
)

Panel: TypeAlias = timeseries.Panel | stat.Panel | heatmap.Panel
Queries: TypeAlias = dict[str, str]
"""Queries, by the legend of their lines."""
Steps: TypeAlias = dict[float, str]
"""Colours, by the value from which on they hold."""


# --- The rows -----------------------------------------------------------------------------------


def promise() -> list[Panel]:
    firing = 'max by (alertname, severity) (ALERTS{alertstate="firing", JOB})'
    spent = """
        sum_over_time(job:taskservice_calls_failed:rate5m{JOB}[30d])
          / sum_over_time(job:taskservice_calls:rate5m{JOB}[30d])
          / scalar(taskservice:slo_error_budget{slo="availability"})
    """
    failing = "job:taskservice_availability:burnrate"
    slow = "job_method:taskservice_latency:burnrate1h"
    paging: Steps = {1: "yellow", 6: "orange", 14.4: "red"}
    up: Steps = {0: "red", 1: "green"}
    left: Steps = {-1000: "red", 0: "orange", 0.25: "green"}
    return [
        _stat("Alerts", {"{{alertname}} ({{severity}})": firing}, {1: "red"}, names_only=True),
        _stat("Error budget left of 30 days", {"{{job}}": f"1 - {spent}"}, left, "percentunit"),
        _stat("Instances that answer", {"{{job}}": "sum by (job) (up{HERE})"}, up),
        _stat("Workers ready", {"{{job}}": "sum by (job) (taskservice_ready{HERE})"}, up),
        _graph(
            "How fast the budget of failed calls is spent",
            "1 spends it in 30 days. Pages: 14.4 over 1h, 6 over 6h. WatchTasks does not count.",
            {f"{{{{job}}}} {window}": f"{failing}{window}{{JOB}}" for window in ("5m", "1h", "6h")},
            steps=paging,
        ),
        _graph(
            "How fast the budget of slow calls is spent, over 1h",
            "Of the OK calls of a method 99 % end within its threshold, which rules/slo.yml says.",
            {"{{job}} {{grpc_method}}": f"{slow}{{JOB, METHOD}}"},
            steps=paging,
        ),
    ]


def traffic() -> list[Panel]:
    started = "rate(grpc_server_call_started_total{HERE, METHOD}[RATE])"
    failed = "rate(grpc_server_call_duration_seconds_count{HERE, METHOD, OURS}[RATE])"
    not_ok = 'rate(grpc_server_call_duration_seconds_count{HERE, METHOD, grpc_status!="OK"}[RATE])'
    errors = "rate(taskservice_server_call_errors_total{HERE, METHOD}[RATE])"
    return [
        _graph(
            "Calls that arrive, by method",
            "Unknown methods are counted as other.",
            {"{{grpc_method}}": f"sum by (grpc_method) ({started})"},
            unit="reqps",
        ),
        _graph(
            "Calls that failed through the service, by method",
            "WatchTasks ends with UNAVAILABLE at every deployment; its callers resume.",
            {"{{grpc_method}} {{grpc_status}}": f"sum by (grpc_method, grpc_status) ({failed})"},
            unit="reqps",
        ),
        _graph(
            "Calls answered with an error, by reason",
            "The reason in ErrorInfo, which the client and the log have.",
            {"{{reason}}": f"sum by (reason) ({errors})"},
            unit="reqps",
        ),
        _graph(
            "Calls that did not end with OK, by status",
            "CANCELLED: the client cancelled the call or disconnected.",
            {"{{grpc_status}}": f"sum by (grpc_status) ({not_ok})"},
            unit="reqps",
        ),
    ]


def latency() -> list[Panel]:
    buckets = """
        rate(
          grpc_server_call_duration_seconds_bucket{
            HERE, METHOD, grpc_status="OK", grpc_method!="taskservice.v1.TaskService/WatchTasks"
          }[RATE]
        )
    """
    of_method = f"sum by (grpc_method, le) ({buckets})"
    size = "total_compressed_message_size_bytes_sum{HERE, METHOD}[RATE]"
    return [
        _graph(
            "99th percentile of OK calls, by method",
            _EXEMPLARS,
            {"{{grpc_method}}": f"histogram_quantile(0.99, {of_method})"},
            unit="s",
            exemplars=True,
        ),
        _graph(
            "Median of OK calls, by method",
            "From arrival on, including the wait for a thread.",
            {"{{grpc_method}}": f"histogram_quantile(0.5, {of_method})"},
            unit="s",
        ),
        _heatmap("How long OK calls take", {"{{le}}": f"sum by (le) ({buckets})"}),
        _graph(
            "Bytes received and sent",
            "Of all requests and answers.",
            {
                "requests": f"sum(rate(grpc_server_call_rcvd_{size}))",
                "answers": f"sum(rate(grpc_server_call_sent_{size}))",
            },
            unit="Bps",
        ),
    ]


def saturation() -> list[Panel]:
    waits = "sum by (le) (rate(db_client_connection_wait_time_seconds_bucket{HERE}[RATE]))"
    connections = "sum by (db_client_connection_state) (db_client_connection_count{HERE})"
    return [
        _graph(
            "Calls that have a thread, and that wait for one, by worker",
            "A worker has THREADS_PER_WORKER. Watches have threads of their own.",
            {"{{instance}} {{worker}} {{state}}": "taskservice_server_calls{HERE}"},
        ),
        _graph(
            "Connections to the database",
            "A worker opens at most THREADS_PER_WORKER + 19.",
            {
                "{{db_client_connection_state}}": connections,
                "the most": "sum(db_client_connection_max{HERE})",
            },
        ),
        _graph(
            "Calls that wait for a connection",
            "After two seconds the call fails with UNAVAILABLE.",
            {
                "wait": "sum(db_client_connection_pending_requests{HERE})",
                "gave up": "sum(increase(db_client_connection_timeouts_total{HERE}[RATE]))",
            },
            steps={1: "red"},
        ),
        _graph(
            "How long the wait for a connection is",
            "Includes opening a new connection.",
            {
                "99th percentile": f"histogram_quantile(0.99, {waits})",
                "median": f"histogram_quantile(0.5, {waits})",
            },
            unit="s",
        ),
    ]


def database() -> list[Panel]:
    statements = "rate(db_client_operation_duration_seconds"
    failed = f'{statements}_count{{HERE, error_type!=""}}[RATE])'
    slowest = f"sum by (db_operation_name, le) ({statements}_bucket{{HERE}}[RATE]))"
    return [
        _graph(
            "Statements by operation",
            "Those of calls, of watches, and of the service itself.",
            {
                "{{db_operation_name}}": "sum by (db_operation_name) "
                f"({statements}_count{{HERE}}[RATE]))"
            },
            unit="ops",
        ),
        _graph(
            "99th percentile by operation",
            "Without the wait for a connection.",
            {"{{db_operation_name}}": f"histogram_quantile(0.99, {slowest})"},
            unit="s",
        ),
        _graph(
            "Where the time goes",
            "Seconds of statements in each second: 1 keeps one connection busy.",
            {
                "{{db_operation_name}}": "sum by (db_operation_name) "
                f"({statements}_sum{{HERE}}[RATE]))"
            },
            stacked=True,
        ),
        _graph(
            "Statements that failed, by SQLSTATE",
            "57014 is one that took too long, or whose caller is gone.",
            {
                "{{db_operation_name}} {{error_type}}": "sum by (db_operation_name, error_type) "
                f"({failed})"
            },
            unit="ops",
        ),
    ]


def tasks() -> list[Panel]:
    return [
        _graph(
            "Open watches",
            "joined: served by the thread of their worker; reading: catching up.",
            {"{{state}}": "sum by (state) (taskservice_watches{HERE})"},
        ),
        _graph(
            "How far watches are behind",
            "A transaction that has been running for long holds back all events after it.",
            {"{{job}}": "max by (job) (taskservice_events_lag_seconds{JOB})"},
            unit="s",
            steps={60: "orange", 900: "red"},
        ),
        _graph(
            "Tasks by status",
            "Those that are not deleted, counted once a minute.",
            {
                "{{status}}": "max by (status) (taskservice_tasks{JOB})",
                "overdue": "max(taskservice_tasks_overdue{JOB})",
            },
        ),
    ]


def processes() -> list[Panel]:
    build = "count by (version, grpc_version, python_version) (taskservice_build_info{HERE})"
    cpu = "sum by (instance, worker) (rate(process_cpu_seconds_total{HERE}[RATE]))"
    return [
        _stat(
            "Workers, by what they run",
            {"{{version}}, grpc {{grpc_version}}, Python {{python_version}}": build},
            {0: "blue"},
        ),
        _graph(
            "How long they have been up",
            "A line that falls to 0 is a worker that was replaced.",
            {"{{instance}} {{worker}}": "time() - process_start_time_seconds{HERE}"},
            unit="s",
        ),
        _graph(
            "CPU, by worker",
            "A worker can use little more than 1: a whole core.",
            {"{{instance}} {{worker}}": cpu},
            steps={0.9: "orange"},
        ),
        _graph(
            "Memory, by worker",
            "Resident memory.",
            {"{{instance}} {{worker}}": "process_resident_memory_bytes{HERE}"},
            unit="bytes",
        ),
        _graph(
            "Open files, by worker",
            "Each connection, of a caller or to the database, is one.",
            {"{{instance}} {{worker}}": "process_open_fds{HERE}"},
        ),
    ]


# --- How it is put together ---------------------------------------------------------------------


def dashboard() -> Dashboard:
    """All rows, for the chosen jobs, instances and methods."""
    board = (
        Dashboard("Task Service")
        .uid("task-service")
        .description("Written by deploy/observability/dashboard.py: change it there.")
        .tags(["task-service", "grpc"])
        .timezone("browser")
        .time("now-3h", "now")
        .refresh("30s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(_variable("job", "taskservice_build_info", "job"))
        .with_variable(_variable("instance", "taskservice_build_info{JOB}", "instance"))
        .with_variable(_variable("method", "grpc_server_call_started_total{HERE}", "grpc_method"))
    )
    ids = itertools.count(1)
    for title, panels in {
        "Service level": promise(),
        "Traffic and errors": traffic(),
        "Latency": latency(),
        "What is full?": saturation(),
        "Database": database(),
        "Watches and tasks": tasks(),
        "Processes": processes(),
    }.items():
        board.with_row(Row(title).id(next(ids)))
        for panel in _laid_out(panels):
            board.with_panel(panel.id(next(ids)))
    return board


def _laid_out(panels: list[Panel]) -> Iterator[Panel]:
    """Numbers in one line, and below them the graphs: two in a line, or three if that is even."""
    numbers = [panel for panel in panels if isinstance(panel, stat.Panel)]
    graphs = [panel for panel in panels if panel not in numbers]
    for number in numbers:
        yield number.height(4).span(_WIDTH // len(numbers))
    for graph in graphs:
        yield graph.height(8).span(_WIDTH // (3 if len(graphs) % 2 else 2))


def _variable(name: str, selector: str, label: str) -> QueryVariable:
    return (
        QueryVariable(name)
        .label(name.capitalize())
        .query(_spelled_out(f"label_values({selector}, {label})"))
        .datasource(_PROMETHEUS)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".+")
    )


def _spelled_out(query: str) -> str:
    for word, meaning in _WORDS.items():
        query = query.replace(word, meaning)
    return " ".join(query.split())


def _targets(queries: Queries, *, exemplars: bool = False) -> Iterator[prometheus.Dataquery]:
    for ref_id, (legend, query) in zip("ABC", queries.items(), strict=False):
        yield (
            prometheus.Dataquery()
            .ref_id(ref_id)
            .datasource(_PROMETHEUS)
            .expr(_spelled_out(query))
            .legend_format(legend)
            .exemplar(exemplars)
            .range()
        )


def _thresholds(steps: Steps) -> ThresholdsConfig:
    """Grafana wants a colour for everything below the first step; green, if there is none."""
    levels = [Threshold(value=value, color=color) for value, color in steps.items()]
    base = Threshold(value=None, color="green")
    return ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps([base, *levels])


def _stat(
    title: str, queries: Queries, steps: Steps, unit: str = "short", *, names_only: bool = False
) -> stat.Panel:
    return (
        stat.Panel()
        .title(title)
        .datasource(_PROMETHEUS)
        .targets([target.instant() for target in _targets(queries)])
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .unit(unit)
        .no_value("none")
        .thresholds(_thresholds(steps))
        .color_mode(BigValueColorMode.BACKGROUND)
        .text_mode(BigValueTextMode.NAME if names_only else BigValueTextMode.VALUE_AND_NAME)
    )


def _graph(
    title: str,
    description: str,
    queries: Queries,
    *,
    unit: str = "short",
    steps: Steps | None = None,
    stacked: bool = False,
    exemplars: bool = False,
) -> timeseries.Panel:
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(_PROMETHEUS)
        .targets(list(_targets(queries, exemplars=exemplars)))
        .unit(unit)
        .min(0)
        .fill_opacity(10)
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(
            common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING)
        )
    )
    if stacked:
        panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    if steps:
        dashed = common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED)
        panel.thresholds(_thresholds(steps)).thresholds_style(dashed)
    return panel


def _heatmap(title: str, queries: Queries) -> heatmap.Panel:
    colors = heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64)
    (target,) = _targets(queries, exemplars=True)
    return (
        heatmap.Panel()
        .title(title)
        .description(_EXEMPLARS)
        .datasource(_PROMETHEUS)
        .with_target(target.format(PromQueryFormat.HEATMAP))
        .calculate(False)
        .color(colors)
        .y_axis(heatmap.YAxisConfig().unit("s"))
    )


def text() -> str:
    """The dashboard as Grafana imports it."""
    return json.dumps(dashboard().build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
