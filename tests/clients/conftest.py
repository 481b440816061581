"""A service for the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.databases import made_database
from tests.support.service import ServiceProcess, running_service


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, postgres_url: str
) -> Iterator[ServiceProcess]:
    with (
        made_database(postgres_url) as url,
        running_service(tmp_path_factory.mktemp("service"), DATABASE_URL=url) as service,
    ):
        yield service
