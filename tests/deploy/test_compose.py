"""The compose file: what Docker Compose takes, and what its parts read."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.settings import Settings
from tests.support.prometheus import OBSERVABILITY

COMPOSE = Path(__file__).parents[2] / "deploy" / "compose"
OURS = "task-service", "migrate", "gateway"


@cache
def _read(file: str) -> Any:
    return yaml.safe_load((COMPOSE / file).read_text())


@pytest.fixture
def services() -> dict[str, Any]:
    services: dict[str, Any] = _read("compose.yaml")["services"]
    return services


@pytest.mark.deploy
def test_docker_compose_takes_the_file() -> None:
    """Compose itself reads it, by its schema: no engine is needed for that."""
    program = COMPOSE.parents[1] / ".tools" / "bin" / "docker-compose"
    command = [str(program), "--file", str(COMPOSE / "compose.yaml"), "config", "--quiet"]
    ran = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_every_variable_of_the_service_is_a_setting(services: dict[str, Any]) -> None:
    for name in OURS:
        for variable in services[name].get("environment", {}):
            assert variable.lower() in Settings.model_fields


def test_the_settings_are_accepted(
    services: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in services["task-service"]["environment"].items():
        monkeypatch.setenv(variable, re.sub(r"\$\{\w+:-(.*)\}", r"\1", value))
    settings = Settings.load()
    assert settings.explicit_database_url is not None
    assert settings.auth_mode == "jwt"


def test_the_service_starts_once_the_schema_is_migrated(services: dict[str, Any]) -> None:
    migrated = {"condition": "service_completed_successfully"}
    assert services["task-service"]["depends_on"]["migrate"] == migrated
    assert services["migrate"]["depends_on"]["postgres"] == {"condition": "service_healthy"}


def test_everything_is_read_only_and_without_privileges(services: dict[str, Any]) -> None:
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_ports_are_published_on_this_machine_only(services: dict[str, Any]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert "127.0.0.1:50051:50051" in ports
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_images_of_others_are_pinned_by_their_version(services: dict[str, Any]) -> None:
    for name in services.keys() - {*OURS, "network"}:
        _, _, tag = services[name]["image"].rpartition(":")
        assert re.fullmatch(r"v?\d+\.\d+(\.\d+)?(@sha256:[0-9a-f]{64})?", tag)


def test_the_grace_to_stop_is_longer_than_the_drain(services: dict[str, Any]) -> None:
    drain = 5 + Settings.model_fields["shutdown_grace_seconds"].default
    assert int(services["task-service"]["stop_grace_period"].removesuffix("s")) > drain


def test_every_mounted_file_is_there(services: dict[str, Any]) -> None:
    mounts = [mount for service in services.values() for mount in service.get("volumes", [])]
    files = [mount.split(":")[0] for mount in mounts if mount.startswith(".")]
    assert len(files) == 8
    assert [file for file in files if not (COMPOSE / file).exists()] == []


def test_prometheus_takes_its_configuration_and_the_rules(
    tmp_path: Path, promtool_program: str
) -> None:
    """The rules lie beside it, as the mounts say."""
    (tmp_path / "prometheus.yml").write_bytes((COMPOSE / "prometheus.yml").read_bytes())
    (tmp_path / "rules").symlink_to(OBSERVABILITY / "rules")
    command = [promtool_program, "check", "config", str(tmp_path / "prometheus.yml")]
    ran = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert f"{len(list((OBSERVABILITY / 'rules').glob('*.yml')))} rule files found" in ran.stdout


def test_prometheus_scrapes_the_service_by_the_name_that_rules_select() -> None:
    example = yaml.safe_load((OBSERVABILITY / "prometheus.yml").read_text())
    (scrape,), (shown,) = _read("prometheus.yml")["scrape_configs"], example["scrape_configs"]
    assert scrape["job_name"] == shown["job_name"]
    assert scrape["static_configs"] == [{"targets": ["task-service:9464"]}]


def test_the_collector_is_where_the_service_exports_to(services: dict[str, Any]) -> None:
    endpoint = services["task-service"]["environment"]["OTEL_EXPORTER_ENDPOINT"]
    assert endpoint == "http://collector:4317"
    shipped = yaml.safe_load((OBSERVABILITY / "collector.yaml").read_text())
    collector = _read("collector.yaml")
    assert collector["processors"] == shipped["processors"]
    assert collector["service"]["pipelines"]["traces"]["receivers"] == ["otlp"]
    assert collector["exporters"]["otlp_grpc"]["endpoint"] == "jaeger:4317"


def test_grafana_finds_the_dashboard_and_its_data_sources(services: dict[str, Any]) -> None:
    (provider,) = _read("grafana/dashboards.yaml")["providers"]
    mounted = f"../observability/grafana:{provider['options']['path']}:ro"
    assert mounted in services["grafana"]["volumes"]
    sources = {source["uid"]: source for source in _read("grafana/datasources.yaml")["datasources"]}
    (link,) = sources["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    assert link["datasourceUid"] in sources
    urls = {source["url"] for source in sources.values()}
    assert urls == {"http://prometheus:9090", "http://jaeger:16686"}
