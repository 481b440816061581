"""Settings are read from the environment and .env, and checked together."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from server.settings import Settings, SettingsError
from server.settings.cores import usable_cores
from tests.support.settings import NO_PLAINTEXT, SAFE, Load, mistakes

PROJECT = Path(__file__).parents[2]


def test_everything_has_a_default(load: Load) -> None:
    """`make run` works in a fresh checkout."""
    settings = load()
    assert (settings.environment, settings.grpc_port, settings.explicit_database_url) == (
        "development",
        50051,
        None,
    )


def test_a_setting_is_read_from_the_environment(load: Load) -> None:
    assert load(GRPC_PORT="1234").grpc_port == 1234


def test_a_setting_is_read_from_dotenv(load: Load) -> None:
    assert load("GRPC_PORT=1234\n").grpc_port == 1234


def test_the_environment_wins_over_dotenv(load: Load) -> None:
    assert load("GRPC_PORT=1234\n", GRPC_PORT="4321").grpc_port == 4321


def test_dotenv_is_found_in_the_working_directory(tmp_path: Path) -> None:
    """In a process of its own, because the process of the tests does not read the file."""
    (tmp_path / ".env").write_text("APP_NAME=from-dotenv\n")
    script = "from server.settings import Settings; print(Settings.load().app_name)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "from-dotenv\n"


def test_an_empty_value_means_not_set(load: Load) -> None:
    """Kubernetes and Compose pass empty strings for what an operator left out."""
    loaded = load("DB_HOST=\n", WORKERS="", DATABASE_URL="")
    assert (loaded.db_host, loaded.workers, loaded.database_url) == (None, None, None)


@pytest.mark.parametrize(
    ("environment", "settings", "seconds"),
    [
        ("development", {}, 0),
        ("production", {}, 5),
        ("production", {"SHUTDOWN_DELAY_SECONDS": "0"}, 0),
    ],
)
def test_a_drain_begins_with_a_delay_in_production(
    load: Load, environment: str, settings: dict[str, str], seconds: float
) -> None:
    loaded = load(**SAFE | {"ENVIRONMENT": environment} | settings)
    assert loaded.drain_delay_seconds == seconds


@pytest.mark.parametrize(
    ("settings", "workers"),
    [({}, 1), (SAFE, usable_cores()), ({"WORKERS": "7"}, 7), (SAFE | {"WORKERS": "7"}, 7)],
)
def test_the_number_of_workers_depends_on_the_environment(
    load: Load, settings: dict[str, str], workers: int
) -> None:
    assert load(**settings).worker_count == workers


def test_settings_do_not_change(load: Load) -> None:
    with pytest.raises(ValidationError):
        load().grpc_port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ENVIRONMENT", "prod", "Input should be 'development', 'staging' or 'production'"),
        ("LOG_LEVEL", "loud", "Input should be 'DEBUG', 'INFO', 'WARNING' or 'ERROR'"),
        ("DEBUG", "perhaps", "Input should be a valid boolean, unable to interpret input"),
        ("GRPC_PORT", "65536", "Input should be less than or equal to 65535"),
        ("GRPC_PORT", "-1", "Input should be greater than or equal to 0"),
        ("WORKERS", "0", "Input should be greater than or equal to 1"),
        ("THREADS_PER_WORKER", "0", "Input should be greater than or equal to 1"),
        ("SHUTDOWN_DELAY_SECONDS", "-1", "Input should be greater than or equal to 0"),
        ("SHUTDOWN_GRACE_SECONDS", "nan", "Input should be less than or equal to 3600"),
        ("DB_PORT", "0", "Input should be greater than or equal to 1"),
        ("REFLECTION", "yes", "Input should be 'on', 'authenticated' or 'off'"),
        ("MAX_CONCURRENT_CALLS", "3", "must be 4 or more, as THREADS_PER_WORKER is"),
        ("EVENT_RETENTION_DAYS", "1e300", "Input should be less than or equal to 36500"),
    ],
)
def test_a_value_out_of_bounds_is_refused(load: Load, name: str, value: str, message: str) -> None:
    assert mistakes(load, **{name: value}) == [f"{name}: {message}"]


def test_dotenv_must_be_text(load: Load) -> None:
    assert mistakes(load, b"APP_NAME=\xff\n") == [".env: must be UTF-8 text"]


def test_all_mistakes_are_reported_at_once(load: Load) -> None:
    """Those that depend on two settings, too."""
    assert mistakes(load, "WORKERS=0\n", ENVIRONMENT="production", DEBUG="x") == [
        "AUTH_MODE: must be set in production, even if to none",
        "DATABASE_URL: must be set (or DB_HOST) in production",
        "DEBUG: Input should be a valid boolean, unable to interpret input",
        "SECRET_KEY: must have 32 characters or more in production",
        f"TLS_CERT_FILE: {NO_PLAINTEXT}",
        "WORKERS: Input should be greater than or equal to 1",
    ]


def test_the_error_reads_as_its_lines(load: Load) -> None:
    with pytest.raises(SettingsError, match=r"\ADEBUG: [^\n]+\nWORKERS: [^\n]+\Z"):
        load(WORKERS="0", DEBUG="x")


def test_the_example_names_every_setting_once() -> None:
    example = (PROJECT / ".env.example").read_text()
    names = re.findall(r"^(?:# ?)?([A-Z][A-Z_]*)=", example, re.MULTILINE)
    assert sorted(names) == sorted(name.upper() for name in Settings.model_fields)


def test_the_example_shows_the_defaults(load: Load) -> None:
    assert load((PROJECT / ".env.example").read_bytes()) == Settings(_env_file=None)


def test_there_are_few_settings() -> None:
    assert len(Settings.model_fields) <= 47


@pytest.mark.parametrize(
    ("settings", "level"),
    [
        ({}, "INFO"),
        ({"DEBUG": "true"}, "DEBUG"),
        ({"LOG_LEVEL": "WARNING"}, "WARNING"),
        ({"DEBUG": "true", "LOG_LEVEL": "ERROR"}, "ERROR"),
    ],
)
def test_debug_changes_the_default_of_the_log_level(
    load: Load, settings: dict[str, str], level: str
) -> None:
    assert load(**settings).level == level
