"""Fixtures for tests of the settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.settings import Settings
from tests.support.settings import Load


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Load the settings in a folder of the test's own, from this .env and these variables."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(Settings.model_config, "env_file", ".env")

    def load(dotenv: str | bytes = "", **environment: str) -> Settings:
        (tmp_path / ".env").write_bytes(dotenv if isinstance(dotenv, bytes) else dotenv.encode())
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return Settings.load()

    return load
