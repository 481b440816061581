"""Fixtures for tests of the whole service: processes, sockets and a database, all of them real."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType

import pytest

from tests.support.databases import made_database
from tests.support.service import ServiceProcess, running_service


@pytest.fixture
def start_service(tmp_path: Path) -> Iterator[Callable[..., ServiceProcess]]:
    """Starts a service with these settings; what still runs at the end is killed."""
    with ExitStack() as services:

        def start(
            folder: Path | None = None,
            program: Sequence[str] = (),
            constants: Mapping[str, object] = MappingProxyType({}),
            **settings: str,
        ) -> ServiceProcess:
            return services.enter_context(
                running_service(folder or tmp_path / "service", program, constants, **settings)
            )

        yield start


@pytest.fixture(scope="module")
def shared_database_url(postgres_url: str) -> Iterator[str]:
    """A migrated database for the tests of a module."""
    with made_database(postgres_url) as url:
        yield url


@pytest.fixture(scope="module")
def shared_service(
    tmp_path_factory: pytest.TempPathFactory, shared_database_url: str
) -> Iterator[ServiceProcess]:
    """One service in staging for those tests of a module that leave it as they found it."""
    with running_service(
        tmp_path_factory.mktemp("service"),
        ENVIRONMENT="staging",
        DATABASE_URL=shared_database_url,
        MAX_CONCURRENT_CALLS="1000",
        WORKERS="1",
    ) as service:
        yield service
