"""Metrics and spans of storage: statements by operation, and the wait for connections.

Names and bounds are OpenTelemetry's semantic conventions for database clients.
"""

import time
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache

from opentelemetry.trace import Span, SpanKind, StatusCode, get_current_span, get_tracer
from prometheus_client import Counter, Histogram

_BOUNDS = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10]

_duration = Histogram(
    "db_client_operation_duration_seconds",
    "How long statements take, by operation",
    ["db_operation_name", "error_type"],
    buckets=_BOUNDS,
)
_wait_time = Histogram(
    "db_client_connection_wait_time_seconds",
    "How long it takes to get a connection",
    buckets=_BOUNDS,
)
timeouts = Counter(
    "db_client_connection_timeouts",
    "How often the wait for a connection was given up",
)
unreadable_events = Counter(
    "taskservice_events_unreadable",
    "How often an event was left out of a watch or a history because it could not be read",
)
_tracer = get_tracer("storage")


@dataclass(slots=True)
class Spent:
    """The seconds that a call has spent in the database, and in waiting for a connection."""

    in_database: float = 0.0
    waiting: float = 0.0


# What the call on this thread has spent. It is not reset: the next call has its own.
spent: ContextVar[Spent] = ContextVar("spent", default=Spent())  # noqa: B039


class StatementMeasured:
    """Measure the execution of a statement: a value in the metrics, a span if the call is sampled.

    The span names the type of an error only: the driver's message may quote a row.
    """

    def __init__(self, name: str, sql: str) -> None:
        self._name = name
        self._span = _span(name, sql) if get_current_span().is_recording() else None

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        seconds = time.perf_counter() - self._began
        spent.get().in_database += seconds
        error_type = (getattr(error, "pgcode", None) or type(error).__name__) if error else ""
        _duration_of(self._name, error_type).observe(seconds)
        if self._span:
            if error:
                self._span.set_attribute("error.type", error_type)
                self._span.set_status(StatusCode.ERROR)
            self._span.end()


@cache
def _duration_of(name: str, error_type: str) -> Histogram:
    return _duration.labels(name, error_type)


def _span(name: str, sql: str) -> Span:
    attributes = {
        "db.system.name": "postgresql",
        "db.operation.name": name,
        "db.query.text": sql,  # It has no values in it.
    }
    return _tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes)


def add_wait(seconds: float) -> None:
    """Record a wait for a connection."""
    spent.get().waiting += seconds
    _wait_time.observe(seconds)
