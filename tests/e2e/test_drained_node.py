"""Instances on several nodes, which are drained and come back one after the other under load."""

from __future__ import annotations

from collections.abc import Callable

from tests.support.load import Load
from tests.support.service import ServiceProcess, wait_until


def await_calls(service: ServiceProcess) -> None:
    wait_until(lambda: len(service.events("call")) > 20, "clients call the service")


def test_nodes_are_drained_in_turn_and_no_call_fails(
    start_service: Callable[..., ServiceProcess], own_database_url: str
) -> None:
    """As `kubectl drain` does: SIGTERM to all that runs there; its replacement comes back."""
    settings = {
        "ENVIRONMENT": "staging",
        "DATABASE_URL": own_database_url,
        "WORKERS": "1",
        "SHUTDOWN_DELAY_SECONDS": "1",
    }
    services = [start_service(**settings) for _ in range(2)]
    with Load(*services, clients=4) as load:
        for service in services:
            load.await_more()
            port = service.port
            assert service.stop() == 0, service.log
            load.await_more()
            await_calls(start_service(**settings, GRPC_PORT=str(port)))
        load.await_more()
    assert load.failures == []
