"""Reserve a port: a taken one is refused, a shared one may be joined."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from server.process.ports import AddressError, listen_address, reserve_port

HOST = "127.0.0.1"


@contextmanager
def listening(*, shares: bool) -> Iterator[int]:
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shares)
        holder.bind((HOST, 0))
        holder.listen()
        yield holder.getsockname()[1]


@pytest.mark.parametrize(("shares", "may_join"), [(False, False), (False, True), (True, False)])
def test_a_taken_port_is_refused(shares: bool, may_join: bool) -> None:
    with (
        listening(shares=shares) as port,
        pytest.raises(AddressError, match=f"{HOST}:{port}.*in use"),
    ):
        reserve_port(HOST, port, may_join=may_join)


def test_a_port_that_is_shared_can_be_joined() -> None:
    with listening(shares=True) as port, closing(reserve_port(HOST, port, may_join=True)) as joined:
        assert joined.getsockname()[1] == port


def test_processes_can_listen_beside_the_reservation() -> None:
    with closing(reserve_port(HOST, 0)) as reserved:
        port = reserved.getsockname()[1]
        for _ in range(2):
            worker = socket.socket()
            worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            worker.bind((HOST, port))
            worker.listen()
            worker.close()


@pytest.mark.parametrize("host", ["no.such.host.invalid", "x" * 70, "203.0.113.1"])
def test_an_address_that_is_not_ours_is_refused(host: str) -> None:
    with pytest.raises(AddressError, match="cannot listen on"):
        reserve_port(host, 0)


@pytest.mark.parametrize(
    ("host", "address"), [("::1", "[::1]:5"), ("[::1]", "[::1]:5"), ("localhost", "localhost:5")]
)
def test_an_address_is_written_as_grpc_reads_it(host: str, address: str) -> None:
    assert listen_address(host, 5) == address
