"""The metrics port: Prometheus asks one worker, and hears of all; /metrics is all that there is.

Workers share the port, so that a scrape comes to any of them. It asks the others, each by its
socket in a folder that only they know, and tells their metrics apart by a label: a sum would fall
when a worker is replaced, and look like a reset of all.
"""

from __future__ import annotations

import io
import secrets
import struct
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from select import select
from socket import AF_INET6, AF_UNIX, SO_SNDTIMEO, SOL_SOCKET, socket
from threading import BoundedSemaphore
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import structlog
from prometheus_client import REGISTRY, CollectorRegistry, Metric, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from server.telemetry.tracing import within

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

log = structlog.get_logger()

_PATIENCE_SECONDS = 1.0
_PATIENCE = struct.pack("ll", int(_PATIENCE_SECONDS), 0)  # As the kernel takes it.
_SCRAPES = 32
_PATH = "/metrics"


class Scraping:
    """Answers scrapes for all workers, and the others' questions about this one."""

    def __init__(self, worker: int, folder: Path | None) -> None:
        self._worker = worker
        self._folder = folder
        self._own_socket: int | None = None
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def start(self, host: str, port: int) -> None:
        """Listens. Raises: OSError."""
        server_class = _ServerIPv6 if ":" in host else _Server
        self._server = make_server(
            host.strip("[]"), port, _metrics_app(self._registry), server_class, _SilentHandler
        )
        _start(self._server.serve_forever)
        if self._folder:
            # By renaming it takes over at once from the one that it replaces, whose number it has.
            made = self._folder / secrets.token_hex(4)
            listener = socket(AF_UNIX)
            listener.bind(str(made))
            listener.listen()
            self._own_socket = made.stat().st_ino
            made.rename(self._folder / f"{self._worker}.socket")
            _start(partial(self._answer_others, listener))

    def stop(self) -> None:
        """Who asks at this moment still gets an answer."""
        self._server.shutdown()
        within(_PATIENCE_SECONDS, self._end)

    def _end(self) -> None:
        while select([self._server], [], [], 0)[0]:
            self._server.handle_request()
        self._server.server_close()

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
            told = self._own() if self._is_own(address) else _ask(address)
            if not told and address.stem == str(self._worker):
                told = self._own()  # The one that followed has gone again.
            yield from told

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

    def _answer_others(self, listener: socket) -> None:
        while True:
            asking, _ = listener.accept()
            asking.setsockopt(SOL_SOCKET, SO_SNDTIMEO, _PATIENCE)
            try:
                with Connection(asking.detach()) as connection:
                    connection.send(self._own())
            except Exception as error:  # Who asked is gone, or does not listen.
                log.debug("metrics were not told", why=str(error))


def _metrics_app(registry: CollectorRegistry) -> WSGIApplication:
    """Answers for /metrics, and for nothing else."""
    metrics = make_wsgi_app(registry)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != _PATH:
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"there is only /metrics\n"]
        try:
            answer: Iterable[bytes] = metrics(environ, start_response)
        except Exception:
            log.exception("metrics cannot be told")
            start_response("500 Internal Server Error", [("Content-Type", "text/plain")])
            return [b"see the log\n"]
        return answer

    return app


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
    """A thread for each scrape, of which there are few: more are turned away."""

    daemon_threads = False  # To close it waits for them.
    allow_reuse_port = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._free = BoundedSemaphore(_SCRAPES)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Logs what socketserver would write to standard error, where no line is JSON."""
        log.debug("a scrape was cut short", why=type(sys.exception()).__name__)


class _ServerIPv6(_Server):
    address_family = AF_INET6


class _SilentHandler(WSGIRequestHandler):
    timeout = _PATIENCE_SECONDS
    """For the next bytes of a request."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """A scrape is no line in the log."""

    def get_stderr(self) -> io.StringIO:
        """Nowhere: wsgiref writes a traceback there when a client does not read its answer."""
        return io.StringIO()
