"""The configuration, the rules and their tests, as Prometheus' own tool reads them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.prometheus import OBSERVABILITY, RULES


@pytest.fixture
def promtool(promtool_program: str) -> Callable[..., None]:
    def run(*arguments: str | Path) -> None:
        ran = subprocess.run(
            [promtool_program, *arguments], capture_output=True, text=True, timeout=300, check=False
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr

    return run


def test_configuration_and_its_rules_are_valid(promtool: Callable[..., None]) -> None:
    promtool("check", "config", OBSERVABILITY / "prometheus.yml")


@pytest.mark.parametrize("name", sorted(path.name for path in RULES.glob("*.yml")))
def test_rules_do_what_their_tests_say(promtool: Callable[..., None], name: str) -> None:
    promtool("check", "rules", RULES / name)
    promtool("test", "rules", RULES / "tests" / name)
