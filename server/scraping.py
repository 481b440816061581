"""The metrics port: Prometheus asks one worker, and hears of all.

Workers share the port, so that a scrape comes to any of them. It asks the others, each by its
socket in a folder that only they know, and tells their metrics apart by a label: a sum would fall
when a worker is replaced, and look like a reset of all.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from select import select
from socket import AF_INET6, AF_UNIX, socket
from wsgiref.simple_server import WSGIRequestHandler, make_server

import structlog
from prometheus_client import REGISTRY, CollectorRegistry, Metric, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from server.process import AddressError, listen_address
from server.telemetry import within

log = structlog.get_logger()

_PATIENCE_SECONDS = 1.0


class Scraping:
    """Answers scrapes for all workers, and the others' questions about this one."""

    def __init__(self, worker: int, folder: Path | None) -> None:
        self._worker = worker
        self._folder = folder
        self._own_socket: int | None = None
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def start(self, host: str, port: int) -> None:
        """Listens. Raises: AddressError."""
        server_class = _ServerIPv6 if ":" in host else _Server
        try:
            self._server = make_server(
                host.strip("[]"), port, make_wsgi_app(self._registry), server_class, _SilentHandler
            )
        except OSError as error:
            where = listen_address(host, port)
            raise AddressError(f"cannot listen on {where}: {error.strerror}") from error
        _start(self._server.serve_forever)
        if self._folder:
            address = self._folder / f"{self._worker}.socket"
            address.unlink(missing_ok=True)  # It has the number of the one that it replaces.
            listener = Listener(str(address), "AF_UNIX")
            self._own_socket = address.stat().st_ino
            _start(partial(self._answer_others, listener))

    def stop(self) -> None:
        """Who asks at this moment still gets an answer."""
        self._server.shutdown()
        while select([self._server], [], [], 0)[0]:
            self._server.handle_request()
        within(_PATIENCE_SECONDS, self._server.server_close)

    def collect(self) -> Iterator[Metric]:
        """The metrics of every worker that answers, by name."""
        merged: dict[str, Metric] = {}
        for metric in self._of_all():
            if metric.name in merged:
                merged[metric.name].samples += metric.samples
            else:
                merged[metric.name] = metric
        yield from merged.values()

    def _of_all(self) -> Iterator[Metric]:
        """Of one worker for each number: the one that drains leaves it to the one that follows."""
        if self._folder is None:
            yield from self._own()
            return
        for address in sorted(self._folder.glob("*.socket")):
            yield from self._own() if self._is_own(address) else _ask(address)

    def _is_own(self, address: Path) -> bool:
        try:
            return address.stat().st_ino == self._own_socket
        except OSError:
            return False

    def _own(self) -> list[Metric]:
        families = list(REGISTRY.collect())
        for family in families:
            family.samples = [
                it._replace(labels=it.labels | {"worker": str(self._worker)})
                for it in family.samples
            ]
        return families

    def _answer_others(self, listener: Listener) -> None:
        while True:
            try:
                with listener.accept() as connection:
                    connection.send(self._own())
            except OSError as error:  # Who asked is gone.
                log.debug("metrics were not told", why=str(error))


def _start(target: Callable[[], object]) -> None:
    threading.Thread(target=target, name="scraping", daemon=True).start()


def _ask(address: Path) -> list[Metric]:
    """The metrics of another worker; nothing when it is gone or does not answer in time."""
    try:
        with _connected(address) as connection:
            if connection.poll(_PATIENCE_SECONDS):
                answer: list[Metric] = connection.recv()
                return answer
    except (OSError, EOFError):
        return []
    log.warning("a worker did not tell its metrics in time", worker=address.stem)
    return []


def _connected(address: Path) -> Connection:
    """Raises: OSError, too, when so many wait already that this one would have to."""
    with socket(AF_UNIX) as client:
        client.setblocking(False)
        client.connect(str(address))
        client.setblocking(True)
        return Connection(client.detach())


class _Server(ThreadingWSGIServer):
    daemon_threads = False  # To close it waits for them.
    allow_reuse_port = True


class _ServerIPv6(_Server):
    address_family = AF_INET6


class _SilentHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """A scrape is no line in the log."""
