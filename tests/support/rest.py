"""Run the REST gateway, and call it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.service import PATIENCE_SECONDS, ServiceProcess, environment, wait_until

ENVOY = Path(sys.executable).parent / "envoy"
JSON = {"content-type": "application/json"}


class Answer(NamedTuple):
    """An HTTP response; names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def reason(self) -> str:
        """The reason of an error: that of its first detail."""
        return str(self.json["details"][0]["reason"])


class Gateway:
    """A running gateway."""

    def __init__(self, port: int, log: Path) -> None:
        self.port = port
        self.log = log

    def call(self, request: str, body: object = None, headers: Mapping[str, str] = JSON) -> Answer:
        """Send a request such as "GET /tasks"; a body that is no text is sent as JSON."""
        method, path = request.split(" ")
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_SECONDS)
        try:
            data = body if isinstance(body, (str, bytes, type(None))) else json.dumps(body)
            connection.request(method, path, data, dict(headers))
            response = connection.getresponse()
            named = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, named, response.read())
        finally:
            connection.close()

    def is_healthy(self) -> bool:
        try:
            return self.call("GET /health").status == 200
        except OSError:
            return False


@contextmanager
def running_gateway(folder: Path, service: ServiceProcess, **settings: str) -> Iterator[Gateway]:
    """Run a gateway beside a service, ready."""
    if not ENVOY.exists():
        if os.environ.get("CI"):
            pytest.fail("Envoy is not installed")
        pytest.skip("needs the extra `gateway`")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {"GRPC_PORT": str(service.port), "HTTP_PORT": str(port), **settings}
    folder.mkdir(exist_ok=True)
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "serve"],
            env=environment(folder, given),
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    gateway = Gateway(port, log)
    try:
        wait_until(gateway.is_healthy, f"the gateway is healthy: {log.read_text()}")
        yield gateway
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)
    assert "script log" not in log.read_text(), "rest.lua failed"
