"""The guard fails when a GetTask becomes more expensive than the committed ratio allows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import guard


@pytest.fixture(autouse=True)
def committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = tmp_path / "guard.json"
    figure.write_text(json.dumps({"ratio": 2.0}))
    monkeypatch.setattr(guard, "_FIGURE", figure)


def test_ratio_within_the_limit_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_measure", lambda: {"ratio": 2.29})

    guard.check()


def test_ratio_above_the_limit_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_measure", lambda: {"ratio": 2.31})

    with pytest.raises(SystemExit, match="more than 15% above"):
        guard.check()
