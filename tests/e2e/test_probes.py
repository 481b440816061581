"""Probes: the status on their port in every state of the service."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from signal import SIGTERM

import grpc
import pytest
from grpc_health.v1 import health_pb2
from hyperframe.frame import (
    DataFrame,
    Frame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
)

from server.network.health import LIVENESS, READINESS, STARTUP
from storage import schema
from storage.embedded import EmbeddedPostgres
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import CreateTaskRequest, UpdateTaskRequest
from tests.support.http2 import HEALTH, RawConnection, call_headers
from tests.support.http2 import call as call_frames
from tests.support.postgres import await_waiting, frozen, killed, locked_task
from tests.support.service import (
    NOT_SERVING,
    SERVING,
    ServiceProcess,
    await_ready,
    await_unready,
    health,
    health_stub,
)

PROBE_TIMEOUT_SECONDS = 1.0
"""Kubernetes' default: what takes longer is a failure."""

StartService = Callable[..., ServiceProcess]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("postgres")


@pytest.fixture(scope="module")
def postgres(data_dir: Path) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(data_dir, settings={"fsync": "off"}) as postgres:
        schema.upgrade(postgres.url)
        yield postgres


@pytest.fixture
def start(start_service: StartService, postgres: EmbeddedPostgres) -> StartService:
    """Starts a service with a port for probes."""

    def start(**settings: str) -> ServiceProcess:
        return start_service(
            **{
                "ENVIRONMENT": "staging",
                "DATABASE_URL": postgres.url,
                "WORKERS": "1",
                "HEALTH_PORT": "0",
                "SHUTDOWN_GRACE_SECONDS": "0",
            }
            | settings
        )

    return start


def probe(service: ServiceProcess, name: str) -> int:
    """As Kubernetes does it: on a connection of its own, and not for long."""
    request = health_pb2.HealthCheckRequest(service=name)
    with grpc.insecure_channel(
        f"127.0.0.1:{service.health_port}", [("grpc.use_local_subchannel_pool", 1)]
    ) as channel:
        return int(health_stub(channel).Check(request, timeout=PROBE_TIMEOUT_SECONDS).status)


def probes(service: ServiceProcess, times: int = 1) -> dict[str, set[int]]:
    """Return the statuses of the three probes."""
    names = {"liveness": LIVENESS, "readiness": READINESS, "startup": STARTUP}
    return {word: {probe(service, name) for _ in range(times)} for word, name in names.items()}


def test_probes_are_answered_while_every_thread_is_busy_and_calls_queue(
    start: StartService, postgres: EmbeddedPostgres
) -> None:
    """A restart under load would make the load worse."""
    service = start(THREADS_PER_WORKER="2")
    stubs = [service.stub(), service.stub()]  # One caller never has all threads.
    await_ready(service.channel())
    task = stubs[0].CreateTask(CreateTaskRequest(task=Task(title="old")))
    update = UpdateTaskRequest(task=Task(id=task.id, title="new"))
    with locked_task(postgres.url, task.id):
        calls = [stub.UpdateTask.future(update) for stub in stubs * 100]
        await_waiting(postgres.url, 2)
        assert probes(service, times=10) == {
            "liveness": {SERVING},
            "readiness": {SERVING},
            "startup": {SERVING},
        }
    for call in calls:
        call.exception()


def test_service_has_not_started_before_the_database_was_there_once(
    start: StartService, postgres: EmbeddedPostgres
) -> None:
    """It is live and not started. Once started, later outages change readiness only."""
    with killed(postgres):
        service = start()
        assert probes(service) == {
            "liveness": {SERVING},
            "readiness": {NOT_SERVING},
            "startup": {NOT_SERVING},
        }
    channel = service.channel()
    await_ready(channel)
    assert probe(service, STARTUP) == SERVING
    with killed(postgres):
        await_unready(channel)
        assert probe(service, STARTUP) == SERVING


def test_probes_are_answered_while_the_database_is_silent(
    start: StartService, data_dir: Path
) -> None:
    """A probe that queried the database itself would hang."""
    service = start()
    channel = service.channel()
    await_ready(channel)
    with frozen(data_dir):
        await_unready(channel)
        assert probes(service, times=10) == {
            "liveness": {SERVING},
            "readiness": {NOT_SERVING},
            "startup": {SERVING},
        }


def test_ports_say_the_same(start: StartService) -> None:
    """Balancers probe the port that they send calls to."""
    service = start()
    channel = service.channel()
    await_ready(channel)
    for name in (LIVENESS, READINESS, STARTUP):
        assert health(channel, name) == probe(service, name) == SERVING


WINDOW = SettingsFrame.INITIAL_WINDOW_SIZE


def watch(name: str) -> tuple[Frame, ...]:
    return call_frames(1, "Watch", health_pb2.HealthCheckRequest(service=name), HEALTH)


def answers(connection: RawConnection) -> Iterator[Frame]:
    """The frames that come; pings are answered, for a server that drains waits for that."""
    for frame in connection.received():
        if isinstance(frame, PingFrame) and "ACK" not in frame.flags:
            connection.send(PingFrame(0, frame.opaque_data, flags=["ACK"]))
        yield frame


def test_watches_that_are_not_read_delay_no_probe(start: StartService) -> None:
    """Neither probes, on both ports, nor the end."""
    service = start(SHUTDOWN_GRACE_SECONDS="3600")
    channel = service.channel()
    await_ready(channel)
    with ExitStack() as opened:
        watches = []
        for port in (service.port, service.health_port):
            connection = opened.enter_context(RawConnection(port, {WINDOW: 0}))
            connection.send(*watch(LIVENESS))
            watches.append(answers(connection))
            assert any(isinstance(frame, HeadersFrame) for frame in watches[-1])
        for name in (LIVENESS, READINESS, STARTUP):
            assert health(channel, name) == probe(service, name) == SERVING
        service.signal(SIGTERM)
        for frames in watches:
            assert any(isinstance(frame, HeadersFrame) for frame in frames)
            list(frames)
        assert service.wait() == 0


def test_a_watch_that_is_read_late_receives_the_current_status(
    start: StartService, data_dir: Path
) -> None:
    """After the one that was on its way; what was so in between is nothing to it."""
    service = start()
    channel = service.channel()
    await_ready(channel)
    with RawConnection(service.port, {WINDOW: 0}) as connection:
        connection.send(*watch(READINESS))
        connection.await_frame(HeadersFrame)
        for _ in range(2):
            with frozen(data_dir):
                await_unready(channel)
            await_ready(channel)
        with frozen(data_dir):
            await_unready(channel)
            connection.send(SettingsFrame(0, {WINDOW: 65_535}))
            data = (f.data[5:] for f in connection.received() if isinstance(f, DataFrame))
            responses = [health_pb2.HealthCheckResponse.FromString(next(data)) for _ in range(2)]
    assert [response.status for response in responses] == [SERVING, NOT_SERVING]


def test_checks_without_a_request_are_forgotten_on_their_own_port_only(start: StartService) -> None:
    """Their number is limited: the oldest is ended. Each port has its own threads."""
    service = start()
    await_ready(service.channel())
    with RawConnection(service.port) as patient, ExitStack() as opened:
        patient.send(call_headers(1, "Check", service=HEALTH))
        others = [opened.enter_context(RawConnection(service.health_port)) for _ in range(5)]
        for connection in others:
            connection.send(
                *(call_headers(stream, "Check", service=HEALTH) for stream in range(1, 501, 2))
            )
        others[0].await_frame(RstStreamFrame)
        patient.send(DataFrame(1, bytes(5), flags=["END_STREAM"]))
        assert (
            patient.await_frame(DataFrame).data[5:]
            == health_pb2.HealthCheckResponse(status=SERVING).SerializeToString()
        )
        assert probe(service, LIVENESS) == SERVING
