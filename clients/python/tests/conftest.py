"""Fixtures of the tests of the client: a real service, and a client of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from taskservice_client import TaskClient
from tests.support.service import ServiceProcess, running_service


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A service without authentication, for all tests."""
    with running_service(tmp_path_factory.mktemp("service")) as service:
        yield service


@pytest.fixture(scope="session")
def address(service: ServiceProcess) -> str:
    return f"127.0.0.1:{service.port}"


@pytest.fixture
def client(address: str) -> Iterator[TaskClient]:
    with TaskClient(address) as client:
        yield client
