"""What storage measures: statements by operation, and the wait for connections.

The names and bounds are OpenTelemetry's semantic conventions for database clients. Without a meter
provider nothing is recorded; what a call itself has spent is counted all the same.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from opentelemetry.metrics import get_meter
from sqlalchemy import Executable

_UNNAMED = "other"
_BOUNDS = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10]

_meter = get_meter("storage")
_duration = _meter.create_histogram(
    "db.client.operation.duration",
    unit="s",
    description="How long statements take, by operation",
    explicit_bucket_boundaries_advisory=_BOUNDS,
)
_wait_time = _meter.create_histogram(
    "db.client.connection.wait_time",
    unit="s",
    description="How long it takes to get a connection",
    explicit_bucket_boundaries_advisory=_BOUNDS,
)
_timeouts = _meter.create_counter(
    "db.client.connection.timeouts",
    unit="{timeout}",
    description="How often the wait for a connection was given up",
)

E = TypeVar("E", bound=Executable)


class Spent:
    """The seconds that a call has spent in the database, and in waiting for a connection."""

    __slots__ = ("in_database", "waiting")

    def __init__(self) -> None:
        self.in_database = 0.0
        self.waiting = 0.0


# What the call on this thread has spent. Nobody resets it: the next call brings its own.
spent: ContextVar[Spent] = ContextVar("spent", default=Spent())  # noqa: B039

# What the statement that runs on this thread is for.
operation: ContextVar[str] = ContextVar("operation", default=_UNNAMED)


def named(name: str, statement: E) -> E:
    """Gives a statement the name under which it is measured and traced."""
    options: Any = statement.execution_options(operation=name)
    return options  # type: ignore[no-any-return]


@contextmanager
def statement_measured(statement: Executable) -> Iterator[None]:
    name = statement.get_execution_options().get("operation", _UNNAMED)
    operation.set(name)
    attributes = {"db.operation.name": name}
    began = time.perf_counter()
    try:
        yield
    except Exception as error:
        sqlstate = getattr(getattr(error, "orig", None), "pgcode", None)
        attributes["error.type"] = sqlstate or type(error).__name__
        raise
    finally:
        seconds = time.perf_counter() - began
        spent.get().in_database += seconds
        _duration.record(seconds, attributes)


def waited(began: float) -> None:
    """A wait for a connection that began then, by the performance counter, is over."""
    seconds = time.perf_counter() - began
    spent.get().waiting += seconds
    _wait_time.record(seconds)


def gave_up() -> None:
    """A wait for a connection was in vain."""
    _timeouts.add(1)
