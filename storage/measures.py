"""What storage measures: statements by operation, and the wait for connections.

Names and bounds are OpenTelemetry's semantic conventions for database clients, as Prometheus spells
them. A statement has a span of its own within a call that is sampled.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from functools import cache
from typing import Any, TypeVar

from opentelemetry.trace import (
    Span,
    SpanKind,
    StatusCode,
    get_current_span,
    get_tracer,
)
from prometheus_client import Counter, Histogram
from sqlalchemy import CursorResult, Executable
from sqlalchemy.exc import DBAPIError

_UNNAMED = "other"
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
_timeouts = Counter(
    "db_client_connection_timeouts",
    "How often the wait for a connection was given up",
)
_unreadable_events = Counter(
    "taskservice_events_unreadable",
    "How often an event was left out of a watch or a history because it could not be read",
)
_tracer = get_tracer("storage")

E = TypeVar("E", bound=Executable)


class Spent:
    """The seconds that a call has spent in the database, and in waiting for a connection."""

    __slots__ = ("in_database", "waiting")

    def __init__(self) -> None:
        self.in_database = 0.0
        self.waiting = 0.0


# What the call on this thread has spent. It is not reset: the next call has its own.
spent: ContextVar[Spent] = ContextVar("spent", default=Spent())  # noqa: B039


def named(name: str, statement: E) -> E:
    """Gives a statement the name under which it is measured and traced."""
    options: Any = statement.execution_options(operation=name)
    return options  # type: ignore[no-any-return]


class StatementMeasured:
    """Measure the execution of a statement: a value in the metrics, a span if the call is sampled.

    The span says of an error its type only: what the driver says of it may quote a row.
    """

    def __init__(self, statement: Executable) -> None:
        self._name = statement.get_execution_options().get("operation", _UNNAMED)
        self._span = _span(self._name) if get_current_span().is_recording() else None

    def __enter__(self) -> StatementMeasured:
        self._began = time.perf_counter()
        return self

    def executed(self, result: CursorResult[Any]) -> None:
        """Notes what was executed; its text has no values in it."""
        if self._span:
            self._span.set_attribute("db.query.text", str(result.context.statement))

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        seconds = time.perf_counter() - self._began
        spent.get().in_database += seconds
        error_type = _type_of(error) if error else ""
        _duration_of(self._name, error_type).observe(seconds)
        if self._span:
            _end(self._span, error, error_type)


@cache
def _duration_of(name: str, error_type: str) -> Histogram:
    return _duration.labels(name, error_type)


def _span(name: str) -> Span:
    attributes = {"db.system.name": "postgresql", "db.operation.name": name}
    return _tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes)


def _end(span: Span, error: BaseException | None, error_type: str) -> None:
    if error:
        span.set_attribute("error.type", error_type)
        span.set_status(StatusCode.ERROR)
        if isinstance(error, DBAPIError) and error.statement:
            span.set_attribute("db.query.text", error.statement)
    span.end()


def _type_of(error: BaseException) -> str:
    return getattr(getattr(error, "orig", None), "pgcode", None) or type(error).__name__


def waited(began: float) -> None:
    """A wait for a connection that began then, by the performance counter, is over."""
    seconds = time.perf_counter() - began
    spent.get().waiting += seconds
    _wait_time.observe(seconds)


def gave_up() -> None:
    """A wait for a connection was in vain."""
    _timeouts.inc()


def count_unreadable_event() -> None:
    """An event was left out."""
    _unreadable_events.inc()
