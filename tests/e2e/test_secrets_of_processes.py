"""What other processes see of the service's secrets: nothing."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.support.service import ServiceProcess

SETTINGS = {
    "SECRET_KEY": "a key that must not be visible",
    "SECRET_KEY_PREVIOUS": "a previous key, not visible",
    "JWT_ISSUER": "https://issuer.example",
    "OTEL_EXPORTER_OTLP_HEADERS": "authorization=a-token",
    "AWS_SECRET_ACCESS_KEY": "another program's",
}


def others(service: ServiceProcess) -> list[psutil.Process]:
    """The guard, PostgreSQL and what it forks."""
    parent, *children = service.family()
    return [child for child in children if child.cmdline() != parent.cmdline()]


def test_postgresql_and_its_guard_get_no_settings(
    start_service: Callable[..., ServiceProcess],
) -> None:
    service = start_service(ENVIRONMENT="development", WORKERS="2", **SETTINGS)
    assert service.port
    processes = others(service)
    assert len(processes) > 2
    for process in processes:
        environment = process.environ()
        assert environment.keys() <= {"PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "PWD"} | {
            name for name in environment if name.startswith("PG")
        }
        assert not [value for value in environment.values() if value in SETTINGS.values()]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_what_development_keeps_is_for_its_owner_only(
    start_service: Callable[..., ServiceProcess], umask: int
) -> None:
    before = os.umask(umask)
    try:
        service = start_service(ENVIRONMENT="development", AUTH_MODE="jwt", SECRET_KEY="")
    finally:
        os.umask(before)
    assert service.port
    assert mode(service.data_dir / "secret_key") == 0o600
    # PostgreSQL of a service that root runs may pass through, to its own folder.
    assert mode(service.data_dir) & ~0o010 == 0o700


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_key_that_others_may_use_ends_the_start(
    start_service: Callable[..., ServiceProcess], tmp_path: Path
) -> None:
    data = tmp_path / "service" / "data"
    data.mkdir(parents=True)
    (data / "secret_key").write_text("this key may have been read")
    (data / "secret_key").chmod(0o644)
    service = start_service(ENVIRONMENT="development", SECRET_KEY="")
    assert service.wait() == 2
    assert service.log.endswith(
        f"DATA_DIR: cannot be used: others may use {service.data_dir}/secret_key: "
        "remove it, and a new one is made; or chmod 600\n"
    )
