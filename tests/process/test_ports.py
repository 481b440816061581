"""Ports: what is taken is found out, even by those who would share it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from server.process.ports import AddressError, listen_address, reserve_port

HOST = "127.0.0.1"


@pytest.fixture(params=["alone", "sharing"])
def listening(request: pytest.FixtureRequest) -> Iterator[int]:
    with socket.socket() as holder:
        if request.param == "sharing":
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((HOST, 0))
        holder.listen()
        yield holder.getsockname()[1]


@pytest.mark.parametrize("share", [False, True])
def test_a_port_that_somebody_listens_on_is_refused(listening: int, share: bool) -> None:
    with pytest.raises(AddressError, match=f"{HOST}:{listening}.*in use"):
        reserve_port(HOST, listening, share=share)


def test_processes_can_listen_beside_the_reservation() -> None:
    with closing(reserve_port(HOST, 0, share=True)) as reserved:
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
        reserve_port(host, 0, share=False)


@pytest.mark.parametrize(
    ("host", "address"), [("::1", "[::1]:5"), ("[::1]", "[::1]:5"), ("localhost", "localhost:5")]
)
def test_an_address_is_written_as_grpc_reads_it(host: str, address: str) -> None:
    assert listen_address(host, 5) == address
