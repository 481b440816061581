"""Run the service as a process: its log, its ports, its signals."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import MappingProxyType
from typing import Any, TextIO, TypeVar

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from server.network.health import LIVENESS, READINESS
from taskservice.v1.task_service_pb2 import GetTaskStatsRequest
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.forking import Command, fork
from tests.support.ports import held_port

PATIENCE_SECONDS = 60.0

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

_INHERITED = {"PATH", "HOME", "LANG", "COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG"}

# Channels to one address share their connections by default.
_CONNECTION_OF_ITS_OWN = [("grpc.use_local_subchannel_pool", 1)]

T = TypeVar("T")


def wait_until(condition: Callable[[], T], what: str) -> T:
    """The condition's first true value. Fails when there is none in time."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    pytest.fail(f"never happened: {what}")


def environment(folder: Path, settings: dict[str, str]) -> dict[str, str]:
    """Settings for a command that runs in the folder, and nothing of the tests' own."""
    return {
        **{name: value for name, value in os.environ.items() if name in _INHERITED},
        "DATA_DIR": str(folder / "data"),
        "GRPC_PORT": "0",
        **settings,
    }


def run_command(
    folder: Path, *arguments: str, program: Sequence[str] = (), **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run a command of the service to its end."""
    pipes = [Pipe(duplex=False) for _ in range(2)]
    command = Command(arguments, environment(folder, settings), folder, program)
    process = fork(command, [writing for _, writing in pipes])
    with ThreadPoolExecutor(2) as threads:
        output, errors = threads.map(_text, [reading for reading, _ in pipes])
    process.join(PATIENCE_SECONDS)
    assert process.exitcode is not None, "the command does not end"
    return subprocess.CompletedProcess(arguments, process.exitcode, output, errors)


def _text(output: Connection) -> str:
    with _opened(output) as text:
        return text.read()


def _opened(output: Connection) -> TextIO:
    """Return the text of a pipe, which the text's end closes."""
    with output:
        return os.fdopen(os.dup(output.fileno()))


class ServiceProcess:
    """A running `task-service serve`, in a process group of its own, as in a shell."""

    def __init__(
        self,
        folder: Path,
        program: Sequence[str] = (),
        constants: Mapping[str, object] = MappingProxyType({}),
        /,
        **settings: str,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.data_dir = folder / "data"
        defaults = {
            "AUTH_MODE": "none",
            "RATE_LIMIT_PER_SECOND": "1000000",
            "SECRET_KEY": "0123456789abcdef0123456789abcdef",
            "SHUTDOWN_DELAY_SECONDS": "0",
            "TLS_TERMINATED_UPSTREAM": "true",
        }
        given = environment(folder, defaults | settings)
        if program:
            program = [*program, sys.executable, "-m", "server"]
        output, end = Pipe(duplex=False)
        self._process = fork(Command(["serve"], given, folder, program, dict(constants)), [end])
        self.lines: list[str] = []
        self._channels: list[grpc.Channel] = []
        self._held = ExitStack()
        self._reader = threading.Thread(target=self._read, args=[_opened(output)], daemon=True)
        self._reader.start()

    def _read(self, output: TextIO) -> None:
        with output:
            self.lines.extend(iter(output.readline, ""))

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def ended(self) -> bool:
        return self._process.exitcode is not None

    @property
    def log(self) -> str:
        return "".join(list(self.lines))

    def events(self, *messages: str) -> list[dict[str, Any]]:
        """The JSON log lines with one of these messages (in staging and production)."""
        parsed = [json.loads(line) for line in list(self.lines) if line.startswith("{")]
        return [event for event in parsed if event.get("message") in messages]

    def await_log(self, text: str) -> None:
        wait_until(lambda: text in self.log or self.ended, f"{text!r} in the log:\n{self.log}")
        wait_until(lambda: text in self.log or not self._reader.is_alive(), f"{text!r} at the end")
        assert text in self.log, self.log

    @cached_property
    def port(self) -> int:
        """The port that it serves on, once it does; held until the end of the test."""

        def found() -> list[str]:
            return [line for line in self.lines.copy() if "serving" in line and "address" in line]

        lines = wait_until(
            lambda: found() or ([self.log] if self.ended else []), "the service serves"
        )
        port = int(re.findall(r'address\W+[^\s",]*:(\d+)', lines[0])[0])
        return self._held.enter_context(held_port(port))

    @property
    def health_port(self) -> int:
        """The port for probes (in staging and production)."""
        self.await_log("address")
        return int(self.events("serving")[0]["health"])

    def channel(self, service_config: str = "{}") -> grpc.Channel:
        """A channel with a connection of its own."""
        channel = grpc.insecure_channel(
            f"127.0.0.1:{self.port}",
            options=[*_CONNECTION_OF_ITS_OWN, ("grpc.service_config", service_config)],
        )
        self._channels.append(channel)
        grpc.channel_ready_future(channel).result(PATIENCE_SECONDS)
        return channel

    def stub(self) -> TaskServiceStub:
        return TaskServiceStub(self.channel())

    def workers(self) -> set[int]:
        """The pids of the processes that it forked to serve."""
        children = self._children()
        return {child.pid for child in children if _command(child) == _command(self._own())}

    def family(self) -> list[psutil.Process]:
        """The process and all that came of it, PostgreSQL included."""
        return [self._own(), *self._own().children(recursive=True)]

    def _own(self) -> psutil.Process:
        return psutil.Process(self.pid)

    def _children(self) -> list[psutil.Process]:
        try:
            return self._own().children()
        except psutil.NoSuchProcess:
            return []

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float = PATIENCE_SECONDS) -> int:
        """The exit code, once it has ended."""
        self._process.join(seconds)
        assert self._process.exitcode is not None, f"it runs after {seconds} seconds"
        self._reader.join(PATIENCE_SECONDS)
        return self._process.exitcode

    def stop(self) -> int:
        if not self.ended:
            self.signal(signal.SIGTERM)
        return self.wait()

    def clean_up(self) -> None:
        """Close the channels and kill the process."""
        for channel in self._channels:
            channel.close()
        if not self.ended:
            self._process.kill()
        self.wait()
        self._held.close()


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def is_gone(process: psutil.Process) -> bool:
    """Return whether it has ended; a zombie has."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def kill_all(processes: Iterable[psutil.Process]) -> None:
    """Kills those that the end of another has not ended already."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


@contextmanager
def running_service(
    folder: Path,
    program: Sequence[str] = (),
    constants: Mapping[str, object] = MappingProxyType({}),
    /,
    **settings: str,
) -> Iterator[ServiceProcess]:
    """Run a service, by `program` if given, or with other constants; kill it at the end."""
    service = ServiceProcess(folder, program, constants, **settings)
    try:
        yield service
    finally:
        service.clean_up()


def health_stub(channel: grpc.Channel) -> Any:
    """The health service's stub, whose methods its types don't know."""
    return health_pb2_grpc.HealthStub(channel)


def health(channel: grpc.Channel, name: str) -> int:
    """Return the status that a probe receives."""
    request = health_pb2.HealthCheckRequest(service=name)
    return int(health_stub(channel).Check(request, timeout=PATIENCE_SECONDS).status)


def await_ready(channel: grpc.Channel) -> None:
    wait_until(lambda: health(channel, READINESS) == SERVING, "ready")


def await_unready(channel: grpc.Channel) -> None:
    wait_until(lambda: health(channel, READINESS) == NOT_SERVING, "not ready")


def is_alive(channel: grpc.Channel) -> bool:
    return health(channel, LIVENESS) == SERVING


def refuses_calls(channel: grpc.Channel) -> bool:
    """Whether a new call on this channel does not get in."""
    stub = TaskServiceStub(channel)
    call = stub.GetTaskStats.future(GetTaskStatsRequest(), timeout=PATIENCE_SECONDS)
    code = call.code()
    assert code is not grpc.StatusCode.DEADLINE_EXCEEDED, "the call was neither taken nor refused"
    return code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
