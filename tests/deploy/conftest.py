"""Fixtures for tests of what ships beside the service: its rules, read by the real tools."""

from __future__ import annotations

import os
import shutil

import pytest


@pytest.fixture(scope="session")
def prometheus_program() -> str:
    return _program("prometheus")


@pytest.fixture(scope="session")
def promtool_program() -> str:
    return _program("promtool")


def _program(name: str) -> str:
    """Where a program of Debian's package prometheus is: no Python package, so not all have it.

    Tests that need it do not pass CI without.
    """
    if path := shutil.which(name):
        return path
    missing = f"{name} is not installed: apt-get install prometheus"
    if os.environ.get("CI") == "true":
        pytest.fail(missing)
    pytest.skip(missing)
