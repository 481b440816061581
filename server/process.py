"""What the supervisor and a worker share: signals read in turn, and the port they serve on."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Iterable
from contextlib import ExitStack, suppress
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


class Signals:
    """Signals as something to wait for: nothing runs inside a signal handler.

    A context manager, for the main thread only; it leaves signals as it found them.
    """

    def __init__(self, *numbers: signal.Signals) -> None:
        self._numbers = numbers

    def __enter__(self) -> Signals:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._wakeup_before = signal.set_wakeup_fd(self._writer)
        self._before = {number: signal.signal(number, _noted) for number in self._numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._reader)
        os.close(self._writer)

    def wait(self, timeout_seconds: float | None = None, also: Iterable[int] = ()) -> list[int]:
        """Waits for a signal, or for one of the other descriptors to become readable.

        Returns the signals that came, in turn; none when the time is over.
        """
        select.select([self._reader, *also], [], [], timeout_seconds)
        with suppress(BlockingIOError):
            return [number for number in os.read(self._reader, 64) if number in self._numbers]
        return []


def _noted(_number: int, _frame: object) -> None:
    """The wake-up descriptor has told of the signal; a handler must stand here all the same."""


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
