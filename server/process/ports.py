"""The ports of the service, and the place of a worker among the others."""

import socket
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import structlog

log = structlog.get_logger()


class AddressError(Exception):
    """The service cannot listen on the address in its settings."""


class Ports(NamedTuple):
    """The ports of a worker; None for one that is switched off."""

    grpc: int
    health: int | None = None
    metrics: int | None = None


class WorkerSlot(NamedTuple):
    """What a worker is assigned at its start."""

    ports: Ports
    number: int = 0
    """Unique among running workers; a replacement takes the number of the worker it replaces."""
    metrics_folder: Path | None = None
    """Where workers exchange metrics; None without METRICS_PORT, or for a single worker."""
    supervisor_fds: tuple[int, ...] = ()
    """A descriptor that becomes readable when the supervisor ends; empty for a single worker."""


ALONE = WorkerSlot(Ports(grpc=0))  # A single worker on a free port.


def listen_address(host: str, port: int) -> str:
    """Format the address for gRPC."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def reserve_port(
    host: str, port: int, settings: str = "GRPC_HOST or GRPC_PORT", *, may_join: bool = False
) -> socket.socket:
    """Bind the port that these settings name, without listening; a free one for port 0.

    Workers listen on it beside the reservation (SO_REUSEPORT). With `may_join`, processes of
    another service may listen on it, too: the kernel permits it to those of the same user that
    share the port. Raises: AddressError, when the port is taken.
    """
    try:
        with _bind(host, port, settings, share=False) as probe:
            port = probe.getsockname()[1]
    except AddressError:
        if not may_join:
            raise
        joined = _bind(host, port, settings, share=True)
        log.warning("another process listens on this port, too", port=port)
        return joined
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
                bound.listen()  # Fails if a process listens that shares the port.
            undo.pop_all()
            return bound
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "this is not a host name"
        raise AddressError(
            f"cannot listen on {listen_address(host, port)}: {reason}; choose another {settings}"
        ) from error
