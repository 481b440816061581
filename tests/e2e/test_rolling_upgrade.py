"""Two releases behind one balancer: the newer replaces the older, and is rolled back, under load.

The next release is a copy of this one with one more migration. ROUNDS says how often; `make
upgrade-rounds` prints the figures.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from signal import SIGTERM

import grpc
import pytest
from grpc_health.v1 import health_pb2

from server.network.health import READINESS
from storage import schema
from tests.support.balancer import Balancer, running_balancer
from tests.support.ports import held_port
from tests.support.postgres import execute
from tests.support.releases import CHECKOUT, next_release, program
from tests.support.service import (
    SERVING,
    ServiceProcess,
    await_ready,
    health_stub,
    run_command,
    running_service,
    wait_until,
)
from tests.support.traffic import traffic

ROUNDS = int(os.environ.get("ROUNDS", "2"))
EXPAND = "ALTER TABLE tasks ADD colour text NOT NULL DEFAULT 'red'"
INDEX = "CREATE INDEX CONCURRENTLY idx_task_colour ON tasks (colour)"
UNDO = """
    ALTER TABLE tasks DROP colour;
    UPDATE alembic_version SET version_num = :head, oldest_build = :head
"""


class Instance:
    """A running instance of a release, and the statuses of its readiness since it was ready."""

    def __init__(self, service: ServiceProcess) -> None:
        self.service = service
        self.statuses: list[int] = []

    def watch(self) -> None:
        """Collect the statuses from now on, until the instance ends."""
        channel = self.service.channel()
        await_ready(channel)
        request = health_pb2.HealthCheckRequest(service=READINESS)
        watch = health_stub(channel).Watch(request)
        self.statuses.append(next(watch).status)
        threading.Thread(target=self._collect, args=[watch], daemon=True).start()

    def _collect(self, watch: Iterable[health_pb2.HealthCheckResponse]) -> None:
        with suppress(grpc.RpcError):  # The instance ends.
            self.statuses.extend(answer.status for answer in watch)

    def await_schema(self, *, ahead: bool) -> None:
        """Wait until the instance has noted whether the schema is ahead of it."""
        wait_until(lambda: self._is_behind() == ahead, f"ready, and the schema is ahead: {ahead}")

    def _is_behind(self) -> bool:
        lines = [line for line in self.service.lines.copy() if '"ready"' in line]
        return "the schema is ahead" in json.loads(lines[-1]).get("note", "")


class Fleet:
    """The instances behind a balancer; at most one at each port."""

    def __init__(self, folder: Path, url: str, services: ExitStack) -> None:
        self._folder = folder
        self._url = url
        self._services = services
        self.ports = [services.enter_context(held_port()) for _ in range(2)]
        self.balancer: Balancer = services.enter_context(running_balancer(folder, self.ports))

    def start(self, checkout: Path, port: int) -> Instance:
        """Start an instance of a release; it waits for its schema."""
        settings = {"GRPC_HOST": "127.0.0.1", "GRPC_PORT": str(port), "DATABASE_URL": self._url}
        service = running_service(
            self._folder / str(port),
            program(checkout),
            ENVIRONMENT="staging",
            VERSION=checkout.name,
            WORKERS="1",
            SHUTDOWN_DELAY_SECONDS="2",  # More than the balancer's interval and timeout.
            **settings,
        )
        return Instance(self._services.enter_context(service))

    def migrate(self, checkout: Path) -> str:
        """Run the migrations of a release; return the log."""
        command = [*program(checkout), sys.executable, "-m", "server"]
        ran = run_command(self._folder, "migrate", program=command, DATABASE_URL=self._url)
        assert ran.returncode == 0, ran.stdout
        return ran.stdout

    def admit(self, instance: Instance) -> None:
        """Wait until the instance is ready and gets calls."""
        port = instance.service.port
        wait_until(lambda: port in self.balancer.healthy(), "the balancer sends calls")
        instance.watch()

    def stop(self, instance: Instance) -> None:
        """Stop an instance, which was ready until now."""
        assert instance.statuses == [SERVING]
        instance.service.signal(SIGTERM)
        assert instance.service.wait() == 0

    def undo(self) -> None:
        """Undo the migration of the next release, for the next round."""
        execute(self._url, UNDO, head=schema.head_revision())


@pytest.fixture
def fleet(tmp_path: Path, own_database_url: str) -> Iterator[Fleet]:
    with ExitStack() as services:
        yield Fleet(tmp_path, own_database_url, services)


def upgrade(fleet: Fleet, old: Instance, checkout: Path) -> Instance:
    """Replace an instance by one of the next release, and migrate in between."""
    new = fleet.start(checkout, fleet.ports[1])
    new.service.await_log("serving once the schema is migrated")
    fleet.migrate(checkout)
    old.await_schema(ahead=True)
    fleet.admit(new)
    fleet.stop(old)
    return new


def roll_back(fleet: Fleet, new: Instance) -> Instance:
    """Replace an instance of the next release by one of this release, on the newer schema."""
    old = fleet.start(CHECKOUT, fleet.ports[0])
    assert "the schema is ahead" in fleet.migrate(CHECKOUT)
    fleet.admit(old)
    fleet.stop(new)
    return old


@pytest.mark.timeout(60 + 60 * ROUNDS)
def test_no_call_fails_while_a_release_replaces_another(fleet: Fleet, tmp_path: Path) -> None:
    """An instance stays ready on the schema of the next release, until it is told to stop."""
    began = time.monotonic()
    newer = next_release(tmp_path / "next", EXPAND, INDEX)
    old = fleet.start(CHECKOUT, fleet.ports[0])
    fleet.admit(old)
    with traffic(fleet.balancer.port) as calls:
        for _ in range(ROUNDS):
            new = upgrade(fleet, old, newer)
            old = roll_back(fleet, new)
            fleet.undo()
            old.await_schema(ahead=False)
    seconds = round(time.monotonic() - began)
    print(  # noqa: T201
        f"{ROUNDS} rounds in {seconds} s: {calls.calls.total()} calls {dict(calls.calls)}, "
        f"{len(calls.failures)} failed, the slowest took {calls.slowest_seconds:.1f} s"
    )
    assert calls.failures == []
    assert min(calls.calls.values()) > ROUNDS
