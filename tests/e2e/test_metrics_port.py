"""METRICS_PORT: one path, a host of its own, and nothing written beside the log."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPConnection
from typing import Any

import pytest

from tests.support.service import PATIENCE_SECONDS, ServiceProcess

# Other addresses of this machine.
HERE, SERVICES, METRICS = "127.0.0.1", "127.0.0.2", "127.0.0.3"

Start = Callable[..., ServiceProcess]


@pytest.fixture
def start(start_service: Start, own_database_url: str) -> Start:
    def start(**settings: str) -> ServiceProcess:
        return start_service(DATABASE_URL=own_database_url, METRICS_PORT="0", **settings)

    return start


@pytest.fixture
def staging(start: Start) -> ServiceProcess:
    return start(ENVIRONMENT="staging", WORKERS="1", LOG_LEVEL="DEBUG")


def port_of(service: ServiceProcess) -> int:
    service.await_log('"serving"')
    return int(service.events("serving")[0]["metrics"])


def answer(port: int, path: str, method: str = "GET", host: str = HERE) -> tuple[int, str]:
    connection = HTTPConnection(host, port, timeout=PATIENCE_SECONDS)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


# --- Paths ----------------------------------------------------------------------------------------


def test_only_the_path_of_the_metrics_answers(staging: ServiceProcess) -> None:
    port = port_of(staging)
    status, text = answer(port, "/metrics?a=b")
    assert (status, "taskservice_ready" in text) == (200, True)
    for path in ("/", "/metrics/", "/metrics/x", "/METRICS", "/favicon.ico", "/x"):
        assert answer(port, path) == (404, "there is only /metrics\n"), path
    assert answer(port, "/", "POST")[0] == 404


# --- Scrapes that are cut short -------------------------------------------------------------------


def stalled(port: int, request: bytes = b"GET /metrics HT") -> None:
    """Half a request, and then nothing until the server has had enough."""
    with socket.create_connection((HERE, port), timeout=PATIENCE_SECONDS) as client:
        client.sendall(request)
        with suppress(ConnectionError):
            client.recv(1)


def silent(port: int) -> None:
    """Not a byte."""
    stalled(port, b"")


def reset(port: int) -> None:
    """Gone before the answer, with a reset."""
    client = socket.create_connection((HERE, port), timeout=PATIENCE_SECONDS)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    client.close()


def headers_only(port: int) -> None:
    stalled(port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n")


def garbage(port: int) -> None:
    stalled(port, b"\x16\x03\x01\x1b[31m\r\n\r\n")


@pytest.mark.parametrize("client", [stalled, silent, reset, headers_only, garbage])
def test_a_scrape_that_is_cut_short_writes_nothing_beside_the_log(
    staging: ServiceProcess, client: Callable[[int], Any]
) -> None:
    port = port_of(staging)
    for _ in range(5 if client is reset else 1):
        client(port)
    assert answer(port, "/metrics")[0] == 200
    staging.stop()
    for line in staging.lines:
        json.loads(line)


# --- Where ----------------------------------------------------------------------------------------


def test_in_development_metrics_are_for_this_machine(start: Start) -> None:
    """Even when the service is for others."""
    service = start(ENVIRONMENT="development", GRPC_HOST=SERVICES)
    service.await_log("metrics=")
    port = int(service.log.partition("metrics=")[2].split()[0])
    assert answer(port, "/metrics", host=HERE)[0] == 200
    with pytest.raises(ConnectionRefusedError):
        answer(port, "/metrics", host=SERVICES)


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    ("settings", "host"),
    [({}, SERVICES), ({"METRICS_HOST": METRICS}, METRICS)],
    ids=["as the service", "of its own"],
)
def test_elsewhere_metrics_are_where_the_settings_say(
    start: Start, settings: dict[str, str], host: str, workers: str
) -> None:
    service = start(ENVIRONMENT="staging", WORKERS=workers, GRPC_HOST=SERVICES, **settings)
    port = port_of(service)
    assert answer(port, "/metrics", host=host)[0] == 200
    with pytest.raises(ConnectionRefusedError):
        answer(port, "/metrics", host=HERE)


def test_a_port_of_metrics_that_is_taken_is_named(start_service: Start) -> None:
    with socket.create_server((METRICS, 0)) as other:
        port = other.getsockname()[1]
        service = start_service(METRICS_HOST=METRICS, METRICS_PORT=str(port))
        assert service.wait() == 1
    assert f"cannot listen on {METRICS}:{port}: Address already in use" in service.log
    assert "choose another METRICS_HOST or METRICS_PORT" in service.log
