"""The client's port decides which worker receives a connection."""

from __future__ import annotations

import os
import select
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from server.process.spreading import spread_connections

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's interface is Linux's")

DETACH_REUSEPORT_BPF = 68
HOSTS = ["127.0.0.1", "::1"]


@contextmanager
def listening(count: int, host: str) -> Iterator[list[socket.socket]]:
    """Listeners that share a port, as workers do."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with ExitStack() as opened:
        port = 0
        listeners = []
        for _ in range(count):
            listener = opened.enter_context(socket.socket(family))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind((host, port))
            listener.listen()
            port = port_of(listener)
            listeners.append(listener)
        yield listeners


def port_of(listener: socket.socket) -> int:
    return int(listener.getsockname()[1])


def chosen(listeners: list[socket.socket], host: str, client_port: int) -> int | None:
    """Return which listener receives a connection from this port; None if the port is taken."""
    source = (host, client_port)
    with suppress(OSError), socket.create_connection((host, port_of(listeners[0])), 5, source):
        ready, _, _ = select.select(listeners, [], [], 5)
        ready[0].accept()[0].close()
        return listeners.index(ready[0])
    return None


def has_program(listener: socket.socket) -> bool:
    """Return whether a program was attached; it is no longer."""
    try:
        listener.setsockopt(socket.SOL_SOCKET, DETACH_REUSEPORT_BPF, 0)
    except FileNotFoundError:
        return False
    return True


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("workers", [2, 3])
def test_the_worker_changes_every_sixteen_ports(host: str, workers: int) -> None:
    with listening(workers, host) as listeners:
        spread_connections(port_of(listeners[0]), workers)
        ports = range(20000, 20080)
        received = {port: chosen(listeners, host, port) for port in ports}
    expected = {port: (port + port // 16) % workers for port in ports}
    reached = {port: worker for port, worker in received.items() if worker is not None}
    assert len(reached) > len(ports) / 2
    assert reached == {port: expected[port] for port in reached}


def test_an_ipv4_client_of_an_ipv6_listener_is_spread() -> None:
    with listening(2, "::") as listeners:
        spread_connections(port_of(listeners[0]), 2)
        received = {chosen(listeners, "127.0.0.1", port) for port in range(20100, 20180, 16)}
    assert {0, 1} <= received


def test_a_worker_that_ended_receives_no_connection() -> None:
    with listening(2, HOSTS[0]) as listeners:
        spread_connections(port_of(listeners[0]), 2)
        listeners.pop().close()
        assert {chosen(listeners, HOSTS[0], port) for port in range(20200, 20264)} <= {0, None}


def test_no_file_stays_open() -> None:
    with listening(2, HOSTS[0]) as listeners:
        before = os.listdir("/proc/self/fd")
        spread_connections(port_of(listeners[0]), 2)
        assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize(("listeners", "workers"), [(4, 2), (2, 1)])
def test_services_that_share_a_port_are_left_to_the_hash(listeners: int, workers: int) -> None:
    with listening(listeners, HOSTS[0]) as shared:
        spread_connections(port_of(shared[0]), listeners)
        spread_connections(port_of(shared[0]), workers)
        assert not has_program(shared[0])


def test_a_replacement_beside_its_worker_changes_nothing() -> None:
    with listening(3, HOSTS[0]) as listeners:
        spread_connections(port_of(listeners[0]), 2)
        assert has_program(listeners[0])
