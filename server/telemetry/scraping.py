"""Serve the metrics of all workers at /metrics.

A scrape reaches any worker, which collects the metrics of the others as JSON, over sockets in a
private folder. They have a label for the worker: a sum would fall when a worker is replaced.
"""

import io
import json
import secrets
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from select import select
from socket import AF_INET6, AF_UNIX, socket
from threading import BoundedSemaphore
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import structlog
from prometheus_client import REGISTRY, CollectorRegistry, Metric, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.samples import Exemplar

from server.telemetry.tracing import run_with_timeout

log = structlog.get_logger()

_TIMEOUT_SECONDS = 1.0
_SCRAPES = 32
_PLAIN = [("Content-Type", "text/plain")]


class Scraping:
    """Answer scrapes for all workers, and send this worker's metrics to the others."""

    def __init__(self, worker: int, folder: Path | None) -> None:
        self._worker = worker
        self._folder = folder
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def start(self, host: str, port: int) -> None:
        """Listen. Raises: OSError."""
        server_class = _ServerIPv6 if ":" in host else _Server
        self._server = make_server(
            host.strip("[]"), port, _metrics_app(self._registry), server_class, _SilentHandler
        )
        _start(self._server.serve_forever)
        if self._folder:
            # Renaming replaces the socket of a worker that had this number in one step.
            path = self._folder / secrets.token_hex(4)
            listener = socket(AF_UNIX)
            listener.bind(str(path))
            listener.listen()
            path.rename(self._folder / f"{self._worker}.socket")
            _start(partial(self._answer_others, listener))

    def stop(self) -> None:
        """Stop listening; answer the scrapes that have arrived."""
        self._server.shutdown()
        run_with_timeout(_TIMEOUT_SECONDS, self._end)

    def _end(self) -> None:
        while select([self._server], [], [], 0)[0]:
            self._server.handle_request()
        self._server.server_close()

    def collect(self) -> Iterator[Metric]:
        """Merge the metrics of every worker that answers, by name."""
        addresses = sorted(self._folder.glob("*.socket")) if self._folder else []
        others = [_fetch(address) for address in addresses if address.stem != str(self._worker)]
        merged: dict[str, Metric] = {}
        for metric in chain(self._own(), *others):
            if metric.name in merged:
                merged[metric.name].samples += metric.samples
            else:
                merged[metric.name] = metric
        yield from merged.values()

    def _own(self) -> Iterator[Metric]:
        """Copy families: a collector may return the same object each time."""
        for family in REGISTRY.collect():
            own = Metric(family.name, family.documentation, family.type, family.unit)
            own.samples = [
                sample._replace(labels=sample.labels | {"worker": str(self._worker)})
                for sample in family.samples
            ]
            yield own

    def _answer_others(self, listener: socket) -> None:
        while True:
            client, _ = listener.accept()
            client.settimeout(_TIMEOUT_SECONDS)
            try:
                with client:
                    client.sendall(_encode(self._own()))
            except Exception as error:  # The other worker has ended, or does not read.
                log.debug("metrics were not sent", why=str(error))


def _encode(families: Iterable[Metric]) -> bytes:
    """As JSON: one sample that the parser of the text format rejects would hide all others."""
    described = [(f.name, f.documentation, f.type, f.unit, f.samples) for f in families]
    return json.dumps(described).encode()


def _decode(encoded: bytes) -> Iterator[Metric]:
    """Raises: ValueError if the end is missing."""
    for *description, samples in json.loads(encoded):
        family = Metric(*description)
        for name, labels, value, timestamp, exemplar, *_ in samples:
            family.add_sample(name, labels, value, timestamp, exemplar and Exemplar(*exemplar))
        yield family


def _metrics_app(registry: CollectorRegistry) -> WSGIApplication:
    metrics = make_wsgi_app(registry)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/metrics":
            start_response("404 Not Found", _PLAIN)
            return [b"there is only /metrics\n"]
        try:
            answer: Iterable[bytes] = metrics(environ, start_response)
        except Exception:
            log.exception("metrics cannot be sent")
            start_response("500 Internal Server Error", _PLAIN)
            return [b"see the log\n"]
        return answer

    return app


def _start(target: Callable[[], object]) -> None:
    threading.Thread(target=target, name="scraping", daemon=True).start()


def _fetch(address: Path) -> list[Metric]:
    """Read the metrics of another worker; none if it has ended or does not answer in time."""
    try:
        with socket(AF_UNIX) as client:
            client.setblocking(False)
            client.connect(str(address))  # Fails at once if the queue of connections is full.
            client.settimeout(_TIMEOUT_SECONDS)
            return list(_decode(client.makefile("rb").read()))
    except TimeoutError:
        log.warning("a worker did not send its metrics in time", worker=address.stem)
    except (OSError, ValueError):  # The worker has ended, maybe in the middle of its answer.
        log.debug("a worker has ended", worker=address.stem)
    return []


class _Server(ThreadingWSGIServer):
    """Start a thread for each scrape, up to a limit; close further connections."""

    daemon_threads = False  # server_close waits for them.
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
        """Log what socketserver would write to standard error."""
        log.debug("a scrape was cut short", why=type(sys.exception()).__name__)


class _ServerIPv6(_Server):
    address_family = AF_INET6


class _SilentHandler(WSGIRequestHandler):
    timeout = _TIMEOUT_SECONDS  # Limits the wait for the next bytes of a request.

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Do not log scrapes."""

    def get_stderr(self) -> io.StringIO:
        """Discard the traceback that wsgiref writes when a client does not read the response."""
        return io.StringIO()
