"""Variables that have no effect are reported when the service starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.settings.ignored import ignored_variables
from tests.support.service import running_service
from tests.support.settings import SECRET, Load


def reported(load: Load, dotenv: str = "", **environment: str) -> list[str]:
    load(dotenv, **environment)
    return list(ignored_variables())


def test_an_unknown_name_in_dotenv_is_reported_with_the_nearest(load: Load) -> None:
    """A misspelt setting keeps its default."""
    assert reported(load, "GRPC_PROT=1\nGRPC_HOST=::1\n") == [
        "GRPC_PROT: is unknown in .env, the nearest setting is GRPC_PORT; it is ignored"
    ]


def test_an_unknown_name_in_the_environment_is_not_reported(load: Load) -> None:
    assert reported(load, GRPC_PROT="1") == []


@pytest.mark.parametrize("dotenv", ["JWKS_FILE=keys\n", ""])
def test_a_removed_setting_is_reported(load: Load, dotenv: str) -> None:
    environment = {} if dotenv else {"JWKS_FILE": "keys"}
    assert reported(load, dotenv, **environment) == [
        "JWKS_FILE: is no longer a setting; it is ignored"
    ]


def test_a_standard_variable_in_dotenv_is_reported(load: Load) -> None:
    """OpenTelemetry reads the environment only."""
    assert reported(load, "OTEL_TRACES_SAMPLER=always_on\nOTEL_ENABLED=false\n") == [
        "OTEL_TRACES_SAMPLER: is read from the environment only, not from .env; it is ignored"
    ]


def test_the_value_of_an_unknown_name_is_not_shown(load: Load) -> None:
    """It may be a secret with a misspelt name."""
    assert SECRET not in "\n".join(reported(load, f"SECRET_KEYY={SECRET}\n"))


def test_the_service_starts_and_logs_a_warning(tmp_path: Path, own_database_url: str) -> None:
    (tmp_path / ".env").write_text("COMPOSE_PROJECT_NAME=tasks\nGRPC_PROT=1\n")
    with running_service(
        tmp_path,
        ENVIRONMENT="staging",
        DATABASE_URL=own_database_url,
        WORKERS="1",
        MAX_PAGE_SIZE="10",
    ) as service:
        assert service.port
        warnings = [line for line in service.lines if "it is ignored" in line]
    named = ["COMPOSE_PROJECT_NAME", "GRPC_PROT", "MAX_PAGE_SIZE"]
    assert all(f'"{name}: is ' in line for name, line in zip(named, warnings, strict=True))
    assert all('"warning"' in line for line in warnings)
