"""Run the REST gateway, and call it."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.ports import held_port
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

    def __init__(self, port: int, log: Path, tls: ssl.SSLContext | None = None) -> None:
        self.port = port
        self.log = log
        self._tls = tls

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def call(self, request: str, body: object = None, headers: Mapping[str, str] = JSON) -> Answer:
        """Send a request such as "GET /tasks"; a body that is no text is sent as JSON."""
        method, path = request.split(" ")
        connection = self._connection()
        try:
            data = body if isinstance(body, (str, bytes, type(None))) else json.dumps(body)
            connection.request(method, path, data, dict(headers))
            response = connection.getresponse()
            named = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, named, response.read())
        finally:
            connection.close()

    def _connection(self) -> HTTPConnection:
        address = "127.0.0.1", self.port
        if self._tls:
            return HTTPSConnection(*address, timeout=PATIENCE_SECONDS, context=self._tls)
        return HTTPConnection(*address, timeout=PATIENCE_SECONDS)

    def is_healthy(self) -> bool:
        try:
            return self.call("GET /health").status == 200
        except ssl.SSLCertVerificationError:  # It will not become valid.
            raise
        except OSError:
            return False


def has_envoy() -> None:
    """Skip the test where the extra `gateway` is not installed; CI must have it."""
    if ENVOY.exists():
        return
    if os.environ.get("CI"):
        pytest.fail("Envoy is not installed")
    pytest.skip("needs the extra `gateway`")


@contextmanager
def running_gateway(
    folder: Path, service: ServiceProcess, /, tls: ssl.SSLContext | None = None, **settings: str
) -> Iterator[Gateway]:
    """Run a gateway beside a service, ready."""
    has_envoy()
    folder.mkdir(exist_ok=True)
    log = folder / "log"
    with held_port() as port, log.open("w") as output:
        given = {"GRPC_PORT": str(service.port), "HTTP_PORT": str(port), **settings}
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "serve"],
            env=environment(folder, given),
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        gateway = Gateway(port, log, tls)
        try:
            wait_until(lambda: gateway.is_healthy() or process.poll() is not None, "it is healthy")
            assert process.poll() is None, log.read_text()
            yield gateway
        finally:
            process.terminate()
            process.wait(PATIENCE_SECONDS)
    assert "script log" not in log.read_text(), "rest.lua failed"
