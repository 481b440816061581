"""Channels: the published service config, TLS, interceptors, forks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from servers import failing
from taskservice_client import (
    ClosedClientError,
    Task,
    TaskClient,
    TaskServiceError,
    Tls,
)
from taskservice_client.channels import credentials_for
from tests.support.service import ServiceProcess, running_service

REPOSITORY = Path(__file__).parents[3]
ID = "01a21b10-defa-776c-b031-167c29da6c00"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def secured(
    tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA
) -> Iterator[ServiceProcess]:
    """A service that requires TLS and a certificate of the client."""
    folder = tmp_path_factory.mktemp("secured")
    pair = authority.issue_cert("127.0.0.1", "tasks.example")
    files = folder / "chain.pem", folder / "key.pem", folder / "ca.pem"
    pair.cert_chain_pems[0].write_to_path(files[0])
    pair.private_key_pem.write_to_path(files[1])
    authority.cert_pem.write_to_path(files[2])
    names = ("TLS_CERT_FILE", "TLS_KEY_FILE", "TLS_CLIENT_CA_FILE")
    settings = dict(zip(names, map(str, files), strict=True))
    scopes = '{"dns:billing.example": ["tasks:read", "tasks:write"]}'
    with running_service(folder, AUTH_MODE="mtls", MTLS_SCOPES=scopes, **settings) as service:
        yield service


def certificate(authority: trustme.CA, name: str) -> tuple[bytes, bytes]:
    """A certificate of a client, and its key."""
    pair = authority.issue_cert(name)
    return pair.cert_chain_pems[0].bytes(), pair.private_key_pem.bytes()


def test_the_service_config_is_the_published_one() -> None:
    shipped = resources.files("taskservice_client").joinpath("service_config.json").read_text()
    assert shipped == (REPOSITORY / "deploy/client/service_config.request_ids.json").read_text()


def test_no_timeout_of_the_service_config_bounds_that_of_the_caller() -> None:
    with failing() as (address, server), TaskClient(address) as client:
        client.get(ID, timeout=1000)
        client.create_many([Task(title="a task")], timeout=1000)
        client.purge("deleted_at:*", timeout=1000)
    assert min(call.seconds for call in server.received) > 500


def test_the_service_learns_the_version_of_the_client() -> None:
    with failing() as (address, server), TaskClient(address) as client:
        client.get(ID)
    version = metadata.version("task-service-client")
    assert str(server.received[0].metadata["user-agent"]).startswith(
        f"task-service-client/{version} "
    )


def test_a_certificate_names_the_client(secured: ServiceProcess, authority: trustme.CA) -> None:
    chain, key = certificate(authority, "billing.example")
    tls = Tls(ca=authority.cert_pem.bytes(), certificate=chain, key=key)
    with TaskClient(f"127.0.0.1:{secured.port}", tls=tls) as client:
        assert client.create(title="a task").created_by == "dns:billing.example"
        assert client.health()


def test_certificates_are_read_from_files(
    secured: ServiceProcess, authority: trustme.CA, tmp_path: Path
) -> None:
    chain, key = certificate(authority, "billing.example")
    for name, content in {
        "ca": authority.cert_pem.bytes(),
        "certificate": chain,
        "key": key,
    }.items():
        (tmp_path / name).write_bytes(content)
    tls = Tls(str(tmp_path / "ca"), tmp_path / "certificate", tmp_path / "key", "tasks.example")
    with TaskClient(f"127.0.0.1:{secured.port}", tls=tls) as client:
        assert client.count() >= 0


def test_another_authority_is_not_trusted(secured: ServiceProcess) -> None:
    tls = Tls(ca=trustme.CA().cert_pem.bytes())
    address = f"127.0.0.1:{secured.port}"
    with TaskClient(address, tls=tls, timeout=1) as client, pytest.raises(TaskServiceError):
        client.count()


@pytest.mark.parametrize(
    "target",
    [
        "localhost:50051",
        "127.0.0.1:50051",
        "[::1]:50051",
        "dns:///localhost:50051",
        "ipv4:127.0.0.1:50051,127.0.0.2:50051",
        "ipv6:[::1]:50051",
        "unix:/run/tasks",
    ],
)
def test_a_connection_within_the_machine_is_plaintext(target: str) -> None:
    assert credentials_for(target, None) is None


@pytest.mark.parametrize(
    "target",
    [
        "tasks.example:50051",
        "tasks.example",
        "10.0.0.1:50051",
        "dns:///tasks.example:50051",
        "dns://127.0.0.1/tasks.example:50051",
        "ipv4:127.0.0.1:50051,10.0.0.1:50051",
        "localhost.example:50051",
    ],
)
def test_a_connection_to_another_machine_is_encrypted(target: str) -> None:
    assert credentials_for(target, None) is not None
    assert credentials_for(target, False) is None


def test_interceptors_of_the_application_are_called() -> None:
    seen: list[str] = []

    class Interceptor(grpc.UnaryUnaryClientInterceptor):
        def intercept_unary_unary(
            self, continuation: Callable[..., Any], details: Any, request: Any
        ) -> Any:
            seen.append(details.method)
            return continuation(details, request)

    with failing() as (address, _), TaskClient(address, interceptors=[Interceptor()]) as client:
        client.get(ID)
    assert seen == ["/taskservice.v1.TaskService/GetTask"]


def test_a_client_made_before_a_fork_says_so(address: str) -> None:
    """gRPC's threads do not survive a fork: the call would never end."""
    program = f"""
import os
from taskservice_client import ForkedClientError, TaskClient
client = TaskClient("{address}")
watch = client.watch()
next(watch)
client.count()
if child := os.fork():
    raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
refused = 0
for call in client.count, client.health, watch.__next__:
    try:
        with watch:
            call()
    except ForkedClientError:
        refused += 1
os._exit(refused)
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=60, check=False)
    assert done.returncode == 3


def test_health_of_a_closed_client_says_so() -> None:
    client = TaskClient("127.0.0.1:1")
    client.close()
    with pytest.raises(ClosedClientError):
        client.health()


def test_health_says_that_a_service_is_away() -> None:
    with TaskClient("127.0.0.1:1") as client, pytest.raises(TaskServiceError):
        client.health(timeout=0.2)
