"""Ports that stay free for one test."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

HOST = "127.0.0.1"


@contextmanager
def held_port(port: int = 0) -> Iterator[int]:
    """Hold a port, by default a free one: no other process gets it, and any server can bind it.

    A port that is only looked for may be given to another test's service before it is used. As
    the service shares its port, both would then listen on it.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind((HOST, port))
        yield held.getsockname()[1]
