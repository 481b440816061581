"""One process or several: which serve, which are replaced, and what remains of a killed one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    CreateTaskRequest,
    GetTaskStatsRequest,
    UpdateTaskRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.load import Load
from tests.support.postgres import await_waiting, embedded_url, locked_task
from tests.support.service import (
    PATIENCE_SECONDS,
    ServiceProcess,
    await_ready,
    is_gone,
    kill_all,
    run_command,
    running_service,
    wait_until,
)

StartService = Callable[..., ServiceProcess]


@pytest.fixture(scope="module")
def pair(
    tmp_path_factory: pytest.TempPathFactory, shared_database_url: str
) -> Iterator[ServiceProcess]:
    """A service of two workers."""
    with running_service(
        tmp_path_factory.mktemp("pair"),
        ENVIRONMENT="staging",
        DATABASE_URL=shared_database_url,
        WORKERS="2",
    ) as service:
        yield service


@pytest.fixture
def start_pair(start_service: StartService, own_database_url: str) -> StartService:
    """Starts a service of two workers with a database of its own."""

    def start(**settings: str) -> ServiceProcess:
        service = start_service(
            **{"ENVIRONMENT": "staging", "DATABASE_URL": own_database_url, "WORKERS": "2"}
            | settings
        )
        service.await_log('"serving"')
        return service

    return start


def connected_workers(service: ServiceProcess) -> set[int]:
    """The workers that a client has a connection to."""
    return {
        pid
        for pid in service.workers()
        for connection in psutil.Process(pid).net_connections("tcp")
        if connection.status == psutil.CONN_ESTABLISHED and connection.laddr.port == service.port
    }


def test_development_is_served_by_the_process_itself(start_service: StartService) -> None:
    service = start_service(ENVIRONMENT="development")
    service.stub().GetTaskStats(GetTaskStatsRequest())
    assert service.workers() == set()


def test_every_worker_serves_the_same_port(pair: ServiceProcess) -> None:
    def one_more_channel_reaches_both() -> bool:
        pair.stub().GetTaskStats(GetTaskStatsRequest())
        return connected_workers(pair) == pair.workers()

    wait_until(one_more_channel_reaches_both, "both workers have a connection")
    assert len(pair.workers()) == 2


def test_killed_worker_is_replaced(start_pair: StartService) -> None:
    service = start_pair()
    before = service.workers()
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: len(service.workers() - {victim}) == 2, "a new worker beside the old one")
    assert len(service.workers() & before) == 1


def test_service_answers_while_a_worker_is_missing(start_pair: StartService) -> None:
    service = start_pair()
    victim = min(service.workers())
    os.kill(victim, signal.SIGKILL)
    for _ in range(20):
        service.stub().GetTaskStats(GetTaskStatsRequest(), timeout=PATIENCE_SECONDS)


def test_service_ends_when_its_workers_keep_dying(start_pair: StartService) -> None:
    """Endless restarts would hide the failure from the operator."""
    service = start_pair()

    def killing_ended_it() -> bool:
        for pid in service.workers():
            os.kill(pid, signal.SIGKILL)
        return service.ended

    wait_until(killing_ended_it, "the supervisor gives up")
    assert service.wait() == 1, service.log


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_upgrade_beside_the_old_service_fails_no_call(
    start_service: StartService, own_database_url: str, workers: str
) -> None:
    settings = {
        "ENVIRONMENT": "staging",
        "DATABASE_URL": own_database_url,
        "WORKERS": workers,
        "HEALTH_PORT": "0",
        "METRICS_PORT": "0",
        "SHUTDOWN_DELAY_SECONDS": "1",
    }
    old = start_service(**settings)
    with Load(old, clients=8) as load:
        load.await_more()
        serving = old.events("serving")[0]
        ports = {f"{name.upper()}_PORT": str(serving[name]) for name in ("health", "metrics")}
        new = start_service(**settings | ports | {"GRPC_PORT": str(old.port)})
        wait_until(lambda: len(new.events("ready")) == int(workers), "the new service is ready")
        assert len(new.events("another process listens on this port, too")) == 3
        assert old.stop() == 0, old.log
        load.await_more()
    assert load.failures == []
    assert new.stop() == 0, new.log


def test_workers_with_too_much_memory_are_replaced_and_no_call_fails(
    start_pair: StartService,
) -> None:
    """One after the other, when each has lived for long enough."""
    service = start_pair(WORKER_MAX_RSS_MB="1", SHUTDOWN_DELAY_SECONDS="1")
    before = set(service.workers())
    with Load(service, clients=8) as load:
        wait_until(lambda: before.isdisjoint(service.workers()), "both workers are replaced")
        load.await_more()
    assert load.failures == []
    assert len(service.events("worker uses too much memory")) >= len(before)
    assert service.stop() == 0, service.log


@contextmanager
def busy_workers(service: ServiceProcess, url: str) -> Iterator[list[Any]]:
    """Calls to every worker, which wait in the database while this holds."""
    with grpc.insecure_channel(f"127.0.0.1:{service.port}") as channel:
        task = TaskServiceStub(channel).CreateTask(CreateTaskRequest(task=Task(title="old")))
    wait_until(lambda: not connected_workers(service), "no client is connected")
    update = UpdateTaskRequest(task=Task(id=task.id, title="new"))
    with locked_task(url, task.id):
        calls: list[Any] = []
        while connected_workers(service) != service.workers():
            calls.append(service.stub().UpdateTask.future(update))
        await_waiting(url, len(calls))
        yield calls


def were_answered(calls: list[Any]) -> bool:
    """All read the same version: one of them wrote, and the others may have been rejected."""
    return {call.code() for call in calls} <= {grpc.StatusCode.OK, grpc.StatusCode.ABORTED}


def test_sigterm_lets_the_calls_of_every_worker_finish(
    start_pair: StartService, own_database_url: str
) -> None:
    service = start_pair(THREADS_PER_WORKER="16", SHUTDOWN_GRACE_SECONDS="3600")
    with busy_workers(service, own_database_url) as calls:
        service.signal(signal.SIGTERM)
        wait_until(lambda: len(service.events("draining")) == 2, "both workers drain")
    assert service.wait() == 0, service.log
    assert were_answered(calls)


def test_sigterm_while_workers_start_ends_in_order(
    start_service: StartService, own_database_url: str
) -> None:
    service = start_service(ENVIRONMENT="staging", DATABASE_URL=own_database_url, WORKERS="2")
    wait_until(lambda: len(service.workers()) == 2, "both workers are forked")
    assert service.stop() == 0, service.log


def test_killed_supervisor_leaves_no_process_behind(start_service: StartService) -> None:
    """Orphans would keep the port, and PostgreSQL its folder, from the next start."""
    service = start_service(ENVIRONMENT="development", WORKERS="2")
    assert service.port
    family = service.family()
    service.signal(signal.SIGKILL)
    try:
        wait_until(lambda: all(is_gone(process) for process in family), "every process has ended")
    finally:
        kill_all(family)


def test_ctrl_c_drains_once(start_service: StartService) -> None:
    """A terminal sends SIGINT to every process of the group: to workers, and to PostgreSQL too."""
    service = start_service(
        ENVIRONMENT="development", WORKERS="2", SHUTDOWN_GRACE_SECONDS="3600", LOG_LEVEL="INFO"
    )
    stub = service.stub()
    url = embedded_url(service.data_dir)
    task = stub.CreateTask(CreateTaskRequest(task=Task(title="old")))
    with locked_task(url, task.id):
        call = stub.UpdateTask.future(UpdateTaskRequest(task=Task(id=task.id, title="new")))
        await_waiting(url)
        os.killpg(service.pid, signal.SIGINT)
        wait_until(lambda: service.log.count("draining") == 2, "both workers drain")
    assert call.result(PATIENCE_SECONDS).title == "new"
    assert service.wait() == 0, service.log


def test_command_line_does_not_import_grpc(tmp_path: Path) -> None:
    """Workers are forked from it, and grpc does not survive a fork."""
    program = "import server.__main__, sys; print(sorted(m for m in sys.modules if 'grpc' in m))"
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout == "[]\n"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_supervisor_loads_what_workers_share_but_not_grpc(pair: ServiceProcess) -> None:
    """And it has one thread: a lock that another thread holds stays locked in a fork."""
    assert pair.port

    def loaded(pid: int) -> list[str]:
        maps = Path(f"/proc/{pid}/maps").read_text()
        return [library for library in ("_protovalidate", "cygrpc") if library in maps]

    assert loaded(pair.pid) == ["_protovalidate"]
    assert [loaded(pid) for pid in pair.workers()] == [["_protovalidate", "cygrpc"]] * 2
    assert psutil.Process(pair.pid).num_threads() == 1


@pytest.mark.parametrize("workers", ["1", "2"])
def test_taken_port_is_refused(tmp_path: Path, own_database_url: str, workers: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        ran = run_command(
            tmp_path,
            "serve",
            ENVIRONMENT="staging",
            AUTH_MODE="none",
            TLS_TERMINATED_UPSTREAM="true",
            DATABASE_URL=own_database_url,
            SECRET_KEY="s" * 32,
            GRPC_PORT=str(port),
            WORKERS=workers,
        )
    assert ran.returncode == 1
    complaints = [line for line in ran.stdout.splitlines() if '"info"' not in line]
    assert len(complaints) == 1, ran.stdout
    assert f"127.0.0.1:{port}" in complaints[0]
    assert ran.stderr == ""


def test_workers_that_die_at_once_are_no_crash_loop(
    start_service: StartService, own_database_url: str
) -> None:
    """The kernel, short of memory, may kill many; they are replaced once."""
    service = start_service(ENVIRONMENT="staging", DATABASE_URL=own_database_url, WORKERS="6")
    service.await_log("workers")
    first = service.workers()
    for pid in first:
        psutil.Process(pid).kill()
    wait_until(lambda: len(service.workers() - first) == 6 or service.ended, "six new workers")
    await_ready(service.channel())
    assert service.stop() == 0, service.log
