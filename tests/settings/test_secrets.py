"""Secrets in settings are long enough, kept private, and never shown."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from pydantic import ValidationError

from server.settings import Settings, SettingsError
from tests.support.settings import SAFE, SECRET, URL, Load, mistakes


@pytest.mark.parametrize("show", [repr, str, Settings.model_dump_json])
@pytest.mark.parametrize(
    "settings",
    [
        {"DATABASE_URL": URL},
        {"SECRET_KEY": SECRET},
        {"SECRET_KEY_PREVIOUS": SECRET},
        {"DB_HOST": "db.example", "DB_PASSWORD": SECRET},
    ],
    ids=lambda settings: list(settings)[-1],
)
def test_secrets_are_not_shown(
    load: Load, settings: dict[str, str], show: Callable[[Settings], str]
) -> None:
    """Settings are logged, and end up in tracebacks."""
    assert SECRET not in show(load(**settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"DATABASE_URL": f"mysql://someone:{SECRET}@db.example/tasks"},
        {"DATABASE_URL": f"postgresql://someone:{SECRET}@db.example:port/tasks"},
        {"DATABASE_URL": SECRET},
        {"DATABASE_URL": URL, "DB_HOST": "db.example"},
        {"DATABASE_URL": URL, "SECRET_KEY": SECRET[:31], "ENVIRONMENT": "staging"},
        {"DB_PASSWORD": SECRET, "SECRET_KEY": SECRET, "WORKERS": SECRET},
        {"ENVIRONMENT": "staging", "SECRET_KEY_PREVIOUS": SECRET[:31]},
    ],
)
@pytest.mark.parametrize("construct", [Settings, Settings.load])
def test_errors_do_not_show_secrets(
    load: Load,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, str],
    construct: Callable[[], Settings],
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises((ValidationError, SettingsError)) as raised:
        construct()
    assert SECRET[:31] not in f"{raised.value} {raised.value!r} {raised.value.__cause__!r}"


@pytest.mark.parametrize("environment", ["staging", "production"])
@pytest.mark.parametrize("key", ["", SECRET[:31]])
def test_staging_and_production_need_a_long_secret_key(
    load: Load, environment: str, key: str
) -> None:
    assert mistakes(load, **SAFE | {"ENVIRONMENT": environment, "SECRET_KEY": key}) == [
        f"SECRET_KEY: must have 32 characters or more in {environment}"
    ]


@pytest.mark.parametrize("settings", [SAFE, {"AUTH_MODE": "jwt", "SECRET_KEY": SECRET}])
def test_a_previous_key_is_as_long_as_the_current_one(load: Load, settings: dict[str, str]) -> None:
    """It still opens tokens, and verifies those that it has signed."""
    (line,) = mistakes(load, **settings | {"SECRET_KEY_PREVIOUS": SECRET[:31]})
    assert line.startswith("SECRET_KEY_PREVIOUS: must have 32 characters or more ")


def test_a_previous_key_is_optional(load: Load) -> None:
    assert load(**SAFE, SECRET_KEY_PREVIOUS="").accepted_keys() == [SECRET.encode()]


def test_a_secret_key_of_32_characters_is_long_enough(load: Load) -> None:
    assert load(**SAFE | {"SECRET_KEY": SECRET[:32]}).key() == SECRET[:32].encode()


def test_development_makes_a_key_and_keeps_it(tmp_path: Path) -> None:
    """Page tokens stay good when a developer restarts the service."""
    first = Settings(data_dir=tmp_path / "data").key()
    assert len(first) >= 32
    assert Settings(data_dir=tmp_path / "data").key() == first


def test_every_checkout_makes_a_key_of_its_own(tmp_path: Path) -> None:
    keys = {Settings(data_dir=tmp_path / name).key() for name in ("one", "other")}
    assert len(keys) == 2


def test_the_key_is_for_its_owner_only(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    settings.key()
    modes = [stat.S_IMODE(path.stat().st_mode) for path in sorted(tmp_path.rglob("*"))]
    assert modes == [0o700, 0o600]


@pytest.mark.parametrize("umask", [0, 0o077, 0o777])
def test_the_key_is_for_its_owner_only_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        Settings(data_dir=tmp_path / "data").key()
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in sorted(tmp_path.rglob("*"))]
    assert all(mode & 0o077 == 0 for mode in modes), modes
    assert len(modes) == 2


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_key_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    """A copy of DATA_DIR, or one made by hand."""
    settings = Settings(data_dir=tmp_path)
    settings.key()
    path = tmp_path / "secret_key"
    path.chmod(mode)
    with pytest.raises(SettingsError) as refused:
        settings.key()
    assert refused.value.lines == [
        f"DATA_DIR: cannot be used: others may use {path}: "
        "remove it, and a new one is made; or chmod 600"
    ]
    path.chmod(0o600)
    assert settings.key()


def test_concurrent_first_reads_return_the_same_key(tmp_path: Path) -> None:
    """Never an empty key, from a file that is not written yet."""
    for number in range(50):
        settings = Settings(data_dir=tmp_path / str(number))
        barrier = Barrier(4)

        def key(settings: Settings = settings, barrier: Barrier = barrier) -> bytes:
            barrier.wait()
            return settings.key()

        with ThreadPoolExecutor(4) as threads:
            keys = {future.result() for future in [threads.submit(key) for _ in range(4)]}
        assert len(keys) == 1
