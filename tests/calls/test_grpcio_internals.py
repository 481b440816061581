"""The private parts of grpcio are used with tested versions only."""

from __future__ import annotations

import tomllib
from pathlib import Path

import grpc
from packaging.requirements import Requirement

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_the_installed_grpcio_is_a_tested_version() -> None:
    requirements = map(Requirement, tomllib.loads(PROJECT.read_text())["project"]["dependencies"])
    (tested,) = (one.specifier for one in requirements if one.name == "grpcio")
    assert any(bound.operator == "<" for bound in tested)
    assert tested.contains(grpc.__version__), (
        f"grpcio {grpc.__version__} is untested: check server/calls/grpcio_internals.py, run all "
        f"tests with it, then raise the bound in pyproject.toml ({tested})"
    )
