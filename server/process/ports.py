"""What the supervisor and a worker share: signals read in turn, and the port they serve on."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple


class AddressError(Exception):
    """The service cannot listen where it was told to."""


class Ports(NamedTuple):
    """Where a worker listens; None for what is switched off."""

    grpc: int
    health: int | None = None
    metrics: int | None = None


class Place(NamedTuple):
    """Where a worker stands among the others of the service."""

    ports: Ports
    number: int = 0
    """Its own while it lives; the one that replaces it takes it over."""
    folder: Path | None = None
    """Where workers tell each other their metrics; None without METRICS_PORT, or for one alone."""
    parent: tuple[int, ...] = ()
    """The descriptor that closes when the supervisor is gone."""

    @property
    def is_shared(self) -> bool:
        return bool(self.parent)


ANYWHERE = Place(Ports(grpc=0))
"""Alone, on a free port."""


def listen_address(host: str, port: int) -> str:
    """The address as gRPC takes it."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def reserve_port(
    host: str, port: int, settings: str = "GRPC_HOST or GRPC_PORT", *, share: bool
) -> socket.socket:
    """Binds the port that these settings name, without listening on it; for port 0, a free one.

    With `share` processes of ours may listen on it beside each other (SO_REUSEPORT). Raises:
    AddressError when somebody listens on it, even somebody who would share.
    """
    bound = _bind(host, port, settings, share=False)
    if not share:
        return bound
    port = bound.getsockname()[1]
    bound.close()
    return _bind(host, port, settings, share=True)


def _bind(host: str, port: int, settings: str, *, share: bool) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with ExitStack() as undo:
            bound = undo.enter_context(socket.socket(family, kind, protocol))
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if share:
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            bound.bind(address)
            if not share:
                bound.listen()  # Finds those who bound the port to share it.
            undo.pop_all()
            return bound
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "this is no host name"
        raise AddressError(
            f"cannot listen on {listen_address(host, port)}: {reason}; choose another {settings}"
        ) from error
