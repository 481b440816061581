"""Find programs of Debian packages that tests run."""

from __future__ import annotations

import os
import shutil

import pytest


def debian_program(name: str, package: str) -> str:
    """Where a program of a package of Debian's is: no Python package, so not all have it.

    Tests that need it do not pass CI without.
    """
    if path := shutil.which(name):
        return path
    missing = f"{name} is not installed: apt-get install {package}"
    if os.environ.get("CI") == "true":
        pytest.fail(missing)
    pytest.skip(missing)
