"""Fixtures for tests of what ships beside the service: its rules, read by the real tools."""

from __future__ import annotations

import pytest

from tests.support.programs import debian_program


@pytest.fixture(scope="session")
def prometheus_program() -> str:
    return debian_program("prometheus", "prometheus")


@pytest.fixture(scope="session")
def promtool_program() -> str:
    return debian_program("promtool", "prometheus")
