"""The gateway as a process: its settings, TLS, limits, log and end."""

import gzip
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.gateway.conftest import CreateTask
from tests.gateway.test_streams import Watch
from tests.support.credentials import Certificate
from tests.support.databases import made_database
from tests.support.ports import held_port
from tests.support.rest import JSON, Gateway, has_envoy, running_gateway
from tests.support.service import (
    PATIENCE_SECONDS,
    ServiceProcess,
    environment,
    running_service,
    wait_until,
)


def run_gateway(folder: Path, command: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the gateway to its end."""
    return subprocess.run(
        [sys.executable, "-m", "gateway", command],
        env=environment(folder, settings),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )


def test_envoy_takes_the_configuration(tmp_path: Path) -> None:
    has_envoy()
    assert run_gateway(tmp_path, "validate", CORS_ORIGINS="https://a.example").returncode == 0


def test_the_configuration_has_the_settings_and_no_secret(tmp_path: Path) -> None:
    secret = "a secret that only the service has"  # noqa: S105
    result = run_gateway(
        tmp_path, "config", HTTP_PORT="12345", GRPC_PORT="23456", SECRET_KEY=secret
    )
    assert result.returncode == 0, result.stderr
    config = yaml.safe_load(result.stdout)
    assert config["admin"]["address"]["socket_address"]["address"] == "127.0.0.1"
    assert {"12345", "23456"} <= set(result.stdout.replace("}", " ").replace(",", " ").split())
    assert secret not in result.stdout


@pytest.mark.parametrize(
    ("setting", "value"), [("HTTP_PORT", "99999"), ("TLS_CLIENT_CA_FILE", "ca.pem")]
)
def test_a_mistaken_setting_is_named(tmp_path: Path, setting: str, value: str) -> None:
    result = run_gateway(tmp_path, "config", **{setting: value})
    assert result.returncode == 2
    assert setting in result.stderr


def test_a_taken_port_is_refused(tmp_path: Path) -> None:
    """Also one that its process shares, or calls would reach either of them."""
    has_envoy()
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        ran = run_gateway(tmp_path, "serve", HTTP_PORT=str(port))
    assert ran.returncode == 1
    assert f"cannot bind '127.0.0.1:{port}': Address already in use" in ran.stdout + ran.stderr


def test_a_call_without_a_token_is_challenged(tmp_path: Path, postgres_url: str) -> None:
    settings = {"AUTH_MODE": "jwt"}
    with (
        made_database(postgres_url) as url,
        running_service(tmp_path / "service", DATABASE_URL=url, **settings) as service,
        running_gateway(tmp_path / "gateway", service) as gateway,
    ):
        for headers in ({}, {"authorization": "Bearer nonsense"}):
            answer = gateway.call("GET /tasks", headers=headers)
            assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert answer.json["code"] == 16
        assert "nonsense" not in gateway.log.read_text()


def test_a_limited_client_learns_when_to_come_back(tmp_path: Path, postgres_url: str) -> None:
    with (
        made_database(postgres_url) as url,
        running_service(
            tmp_path / "service", DATABASE_URL=url, RATE_LIMIT_PER_SECOND="1", WORKERS="1"
        ) as service,
        running_gateway(tmp_path / "gateway", service) as gateway,
    ):
        answers = wait_until(
            lambda: [a for a in [gateway.call("GET /tasks")] if a.status == 429],
            "the rate is exceeded",
        )
        assert answers[0].reason == "RATE_LIMIT_EXCEEDED"
        assert int(answers[0].headers["retry-after"]) >= 1


@contextmanager
def running_over_tls(
    folder: Path, url: str, trusted: Certificate
) -> Iterator[tuple[ServiceProcess, Gateway]]:
    """Run a service and a gateway by the certificate and the key in a folder."""
    tls = {
        "TLS_CERT_FILE": str(folder / "cert.pem"),
        "TLS_KEY_FILE": str(folder / "key.pem"),
        "TLS_TERMINATED_UPSTREAM": "false",
    }
    context = ssl.create_default_context(cadata=trusted.pem.decode())
    with (
        made_database(url) as own_url,
        running_service(folder / "service", DATABASE_URL=own_url, **tls) as service,
        running_gateway(folder / "gateway", service, tls=context, **tls) as gateway,
    ):
        yield service, gateway


def test_rest_is_served_over_tls(tmp_path: Path, postgres_url: str) -> None:
    certificate = Certificate("localhost", x509.IPAddress(ip_address("127.0.0.1")))
    (tmp_path / "cert.pem").write_bytes(certificate.pem)
    (tmp_path / "key.pem").write_bytes(certificate.key_pem)
    with running_over_tls(tmp_path, postgres_url, certificate) as (_, gateway):
        assert gateway.call("POST /tasks", {"title": "secret"}).status == 201


def test_a_service_that_drains_is_called_until_it_ends(tmp_path: Path, postgres_url: str) -> None:
    """Balancers see by /health that it drains; until then they send calls."""
    with (
        made_database(postgres_url) as url,
        running_service(
            tmp_path / "service", DATABASE_URL=url, WORKERS="1", SHUTDOWN_DELAY_SECONDS="60"
        ) as service,
        running_gateway(tmp_path / "gateway", service) as gateway,
    ):
        service.signal(signal.SIGTERM)
        wait_until(lambda: not gateway.is_healthy(), "the gateway is not healthy")
        assert gateway.call("POST /tasks", {"title": "a task"}).status == 201
        service.signal(signal.SIGTERM)


def test_a_renewed_certificate_is_served(tmp_path: Path, postgres_url: str) -> None:
    """By both, and the gateway accepts the service's new one without a restart."""
    names = "localhost", x509.IPAddress(ip_address("127.0.0.1"))
    ca = Certificate("a CA")
    old, new = Certificate(*names, issuer=ca), Certificate(*names, issuer=ca)
    _replace(tmp_path, old)
    with running_over_tls(tmp_path, postgres_url, ca) as (service, gateway):
        _replace(tmp_path, new)
        wait_until(lambda: _served_at(service.port) == new.pem, "the service serves the new one")
        wait_until(lambda: _served_at(gateway.port) == new.pem, "the gateway serves it, too")
        wait_until(gateway.is_healthy, "the gateway is healthy")
        assert gateway.call("POST /tasks", {"title": "secret"}).status == 201


def _replace(folder: Path, certificate: Certificate) -> None:
    """Replace a certificate and its key at once, by a link, as Kubernetes does."""
    version = folder / certificate.pem[-40:-30].hex()
    version.mkdir()
    (version / "key.pem").write_bytes(certificate.key_pem)
    (version / "cert.pem").write_bytes(certificate.pem)
    (folder / "new").symlink_to(version.name)
    (folder / "new").rename(folder / "data")
    for name in ("key.pem", "cert.pem"):
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"data/{name}")


def _served_at(port: int) -> bytes:
    served = ssl.get_server_certificate(("127.0.0.1", port))
    return x509.load_pem_x509_certificate(served.encode()).public_bytes(Encoding.PEM)


def test_a_long_answer_is_compressed(gateway: Gateway, task: CreateTask) -> None:
    for _ in range(5):
        task(description="x" * 500)
    answer = gateway.call("GET /tasks", headers={"accept-encoding": "gzip"})
    assert answer.headers["content-encoding"] == "gzip"
    assert len(json.loads(gzip.decompress(answer.body))["tasks"]) >= 5


def test_a_gateway_starts_without_a_warning(gateway: Gateway) -> None:
    assert '"level":"warning"' not in gateway.log.read_text()


def test_the_access_log_is_json_without_queries_of_secrets(gateway: Gateway) -> None:
    headers = JSON | {"authorization": "Bearer hidden", "x-request-id": "logged"}
    gateway.call("GET /tasks?page_size=3", headers=headers)
    wait_until(lambda: '"logged"' in gateway.log.read_text(), "the call is logged")
    (line,) = [line for line in gateway.log.read_text().splitlines() if '"logged"' in line]
    entry = json.loads(line)
    assert (entry["method"], entry["status"]) == ("GET", 200)
    assert "hidden" not in line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_service_and_gateway_start_and_end_together(
    tmp_path: Path, postgres_url: str, number: signal.Signals
) -> None:
    has_envoy()
    settings = {
        "AUTH_MODE": "none",
        "SHUTDOWN_DELAY_SECONDS": "0",
        "TLS_TERMINATED_UPSTREAM": "true",
    }
    with (
        held_port() as grpc_port,
        held_port() as http_port,
        made_database(postgres_url) as url,
        (tmp_path / "log").open("w") as log,
    ):
        settings |= {"DATABASE_URL": url, "GRPC_PORT": str(grpc_port), "HTTP_PORT": str(http_port)}
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "up"],
            env=environment(tmp_path, settings),
            cwd=tmp_path,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            gateway = Gateway(http_port, tmp_path / "log")
            wait_until(gateway.is_healthy, "both are ready")
            with Watch(gateway) as watch:
                os.kill(process.pid, number)
                types = [message["type"] for message in watch.messages()]
            code = process.wait(PATIENCE_SECONDS)
        finally:
            process.kill()
        for port in (grpc_port, http_port):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port))
    assert types == ["TYPE_ENDED"]
    assert code == 0
