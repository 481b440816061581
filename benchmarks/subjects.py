"""The services under test, and how each is started."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks.calls import (
    SECRET_KEY,
    Calls,
    all_calls,
    basic_calls,
    empty_call,
    get_call,
    json_calls,
    rest_calls,
    token,
)
from benchmarks.database import BenchDatabase
from benchmarks.node import NODE_FOLDER
from benchmarks.processes import LOG, ProcessTree, running
from benchmarks.requests import Request

ROOT = Path(__file__).resolve().parent.parent
COLLECTOR_PORT = 50952
ON, OFF = "Task Service, on", "Task Service, off"
REST = "Task Service, on, by REST"
FASTAPI, AIO, NODE = "FastAPI, ORM", "grpc.aio, asyncpg", "Node, grpc-js, pg"
_START_SECONDS = 180

_SHARED = {
    "ENVIRONMENT": "staging",
    "SECRET_KEY": SECRET_KEY,
    "MAX_CONCURRENT_CALLS": "1000",
    "SHUTDOWN_DELAY_SECONDS": "0",
    "SHUTDOWN_GRACE_SECONDS": "5",
}
_ON = {
    **_SHARED,
    "AUTH_MODE": "jwt",
    "RATE_LIMIT_PER_SECOND": "1000000",  # Counted for each call, and never reached.
    "OTEL_EXPORTER_ENDPOINT": f"http://127.0.0.1:{COLLECTOR_PORT}",
    "OTEL_TRACES_SAMPLER_ARG": "0.1",
}
_OFF = {**_SHARED, "AUTH_MODE": "none", "OTEL_ENABLED": "false", "LOG_LEVEL": "ERROR"}


@dataclass(frozen=True)
class Subject:
    """A service under test; it reads PORT, WORKERS and where its database is."""

    name: str
    command: Sequence[str]
    calls: Callable[[Sequence[str]], Calls]
    """Makes the requests of the calls that it serves, given ids of tasks."""
    environment: Mapping[str, str] = field(default_factory=dict)
    workers: int = 1
    copies: int = 1
    """How many processes to start, where a process starts no others itself."""
    folder: Path = ROOT


@dataclass(frozen=True, eq=False)
class RunningSubject:
    """A service that has answered each of its calls."""

    subject: Subject
    address: str
    processes: ProcessTree
    calls: Calls
    idle_megabytes: float


def service_on(
    workers: int = 1,
    *,
    name: str = ON,
    python: str = sys.executable,
    folder: Path = ROOT,
) -> Subject:
    """Return the service as in staging: JWT, rate limit, JSON log line, 10 % of calls traced."""
    command = (python, "-m", "server", "serve")
    calls = partial(all_calls, bearer=token())
    return Subject(name, command, calls, _ON, workers, folder=folder)


def service_by_rest(workers: int = 1) -> Subject:
    """Return the service as in staging with its gateway, whose CPU is counted too."""
    command = (sys.executable, "-m", "gateway", "up")
    calls = partial(rest_calls, bearer=token())
    environment = {**_ON, "GRPC_PORT": str(free_port())}
    return Subject(REST, command, calls, environment, workers)


def service_off(workers: int = 1) -> Subject:
    """Return the service without authentication, rate limit, log lines and traces."""
    command = (sys.executable, "-m", "server", "serve")
    return Subject(OFF, command, all_calls, _OFF, workers)


def empty_method(*, name: str = "empty method", python: str = sys.executable) -> Subject:
    """Return plain grpcio with a method that does nothing."""
    command = (python, "-m", "benchmarks.services.empty")
    return Subject(name, command, lambda _: empty_call())


def floor() -> Subject:
    """Return plain grpcio with one prepared statement of psycopg2."""
    command = (sys.executable, "-m", "benchmarks.services.floor")
    return Subject("floor", command, get_call)


def aio_asyncpg(workers: int = 1) -> Subject:
    """Return grpc.aio with asyncpg."""
    command = (sys.executable, "-m", "benchmarks.services.aio_asyncpg")
    return Subject(AIO, command, basic_calls, workers=workers, copies=workers)


def fastapi_orm(workers: int = 1) -> Subject:
    """Return FastAPI with SQLAlchemy's ORM, as its tutorial writes it."""
    command = (sys.executable, "-m", "benchmarks.services.fastapi_orm")
    return Subject(FASTAPI, command, json_calls, workers=workers)


def node_grpc(workers: int = 1) -> Subject:
    """Return Node's grpc-js with pg."""
    command = ("node", str(NODE_FOLDER / "server.js"))
    contract = {"PROTO_FOLDERS": f"{ROOT / 'proto'}:{ROOT / '.proto-deps'}"}
    return Subject(NODE, command, basic_calls, contract, workers)


@contextmanager
def running_subject(subject: Subject, database: BenchDatabase) -> Iterator[RunningSubject]:
    """Start a service, and check the answer to each of its calls at the beginning and the end."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    calls = subject.calls(database.task_ids(100))
    environment = {
        "PORT": str(port),
        "GRPC_PORT": str(port),
        "HTTP_PORT": str(port),
        "WORKERS": str(subject.workers),
        "PYTHONPATH": f"{subject.folder}:{subject.folder / 'generated'}",
        **database.environment,
        **subject.environment,
    }
    with running(
        subject.command, environment, copies=subject.copies, folder=subject.folder
    ) as processes:
        _await_port(port)
        _await_answer(next(iter(calls.values()))[0], address)
        _check_answers(calls, address)
        yield RunningSubject(subject, address, processes, calls, processes.largest_megabytes())
        _check_answers(calls, address)


def _await_answer(request: Request, address: str) -> None:
    """Wait until what listens answers: a gateway listens before its service does."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        with suppress(ValueError, LookupError):
            request.send(address)
            return
        time.sleep(0.05)


def _check_answers(calls: Calls, address: str) -> None:
    for requests in calls.values():
        for request in requests:
            request.send(address)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await_port(port: int) -> None:
    """Wait until a service listens."""
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise SystemExit(f"A service did not start: see {LOG}.") from None
            time.sleep(0.05)
        else:
            return
