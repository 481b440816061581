"""Which values the chart refuses, and with what words. Needs `make tools`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.support import chart
from tests.support.chart import refusal, rendered

pytestmark = pytest.mark.deploy

EXTERNAL = {"secretStoreRef": {"kind": "SecretStore", "name": "vault"}}


def test_chart_without_values_is_refused_with_all_that_is_missing() -> None:
    told = refusal({}, base={})
    for name in (
        "image.repository",
        "config.AUTH_MODE",
        "tls.secretName",
        "secrets",
        "migration.secrets",
    ):
        assert f"\n- {name}: " in told


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (
            {"secrets": {"existingSecret": ""}},
            "- secrets: the database's URL and SECRET_KEY must be given by",
        ),
        (
            {"secrets": {"externalSecret": EXTERNAL}},
            "- secrets: only one of existingSecret, externalSecret and values",
        ),
        (
            {"secrets": {"existingSecret": "", "externalSecret": EXTERNAL}},
            "- secrets.externalSecret: extract or data must be set",
        ),
        (
            {"secrets": {"existingSecret": "", "values": {"SECRET_KEY": "k" * 32}}},
            "- secrets.values.DATABASE_URL: must be set",
        ),
        (
            {
                "secrets": {
                    "existingSecret": "",
                    "values": {"DATABASE_URL": "postgresql://db/tasks"},
                }
            },
            "- secrets.values.SECRET_KEY: must have 32 characters or more",
        ),
        (
            {"migration": {"secrets": {"existingSecret": ""}}},
            "- migration.secrets: the database's URL must",
        ),
        ({"migration": {"activeDeadlineSeconds": 901}}, "- probes.startupSeconds: must not be"),
        ({"config": {"AUTH_MODE": "mtls"}}, "- config.AUTH_MODE: mtls needs"),
        ({"config": {"TLS_TERMINATED_UPSTREAM": False}}, "- tls.secretName: must be set in"),
        ({"config": {"HEALTH_PORT": None}}, "- config.HEALTH_PORT: must be set"),
        ({"gateway": {"enabled": True}}, "- gateway.image.repository: must be set"),
        ({"grpcRoute": {"enabled": True}}, "- grpcRoute.parentRefs: must name a Gateway"),
        ({"autoscaling": {"enabled": True, "targetCPU": 0}}, "- autoscaling: targetCPU or"),
    ],
)
def test_mistake_is_refused_in_words(values: chart.Values, told: str) -> None:
    assert told in refusal(values)


@pytest.mark.parametrize(
    "values",
    [
        {"replicaCount": 3},
        {"service": {"prot": 50051}},
        {"config": {"LOG_LEVLE": "DEBUG"}},
        {"config": {"SECRET_KEY": "k" * 32}},
        {"secrets": {"values": {"SECRT_KEY": "k" * 32}}},
        {"extraEnv": [{"name": "A", "val": "b"}]},
        {"migration": {"mode": "initContainer"}},
        {"config": {"GRPC_PORT": "50051"}},
        {"image": {"digest": "latest"}},
    ],
)
@pytest.mark.parametrize("program", [chart.HELM, chart.HELM3])
def test_value_that_the_schema_does_not_know_is_refused(program: str, values: chart.Values) -> None:
    given = chart.merged(chart.MINIMAL, values)
    ran = chart.helm("template", "prod", chart.CHART, values=given, program=program)
    assert ran.returncode != 0
    assert "values don't meet the specifications of the schema" in ran.stderr


def test_secrets_may_come_by_extra_variables_alone() -> None:
    """As an injector of secrets gives them."""
    none = {"existingSecret": ""}
    url = {"extraEnv": [{"name": "DATABASE_URL", "value": "$(INJECTED)"}]}
    found = rendered({"secrets": none, "migration": url | {"secrets": none}} | url)
    assert chart.container(found)["envFrom"] == [{"configMapRef": {"name": "prod-task-service"}}]


def test_settings_of_opentelemetry_are_accepted() -> None:
    assert rendered({"config": {"OTEL_TRACES_SAMPLER_ARG": "0.1"}})


def test_ids_of_users_can_be_left_to_the_platform() -> None:
    found = rendered({"podSecurityContext": {"runAsUser": None, "runAsGroup": None}})
    context = chart.pod(found)["securityContext"]
    assert context["runAsNonRoot"]
    assert "runAsUser" not in context


@pytest.mark.parametrize("program", [chart.HELM, chart.HELM3])
def test_other_charts_can_depend_on_this_one(program: str, tmp_path: Path) -> None:
    """Helm passes `global` and the condition down, which a strict schema may refuse."""
    name = chart.CHART.name
    dependency = {"name": name, "version": "0.1.0", "condition": f"{name}.enabled"}
    parent = {"apiVersion": "v2", "name": "parent", "version": "1.0.0"}
    (tmp_path / "Chart.yaml").write_text(yaml.safe_dump(parent | {"dependencies": [dependency]}))
    shutil.copytree(chart.CHART, tmp_path / "charts" / name)
    values = {name: chart.MINIMAL | {"enabled": True}, "global": {"region": "north"}}
    ran = chart.helm("template", "prod", tmp_path, values=values, program=program)
    assert ran.returncode == 0, ran.stderr
    assert any(item["kind"] == "Deployment" for item in chart.objects(ran.stdout))


@pytest.mark.parametrize("program", [chart.HELM, chart.HELM3])
@pytest.mark.parametrize("name", ["development", "staging", "production"])
def test_linter_finds_nothing(program: str, name: str) -> None:
    file = f"--values={chart.CHART / f'values-{name}.yaml'}"
    image = {"image": {"repository": "registry.example.com/task-service"}}
    ran = chart.helm("lint", chart.CHART, "--strict", file, values=image, program=program)
    assert ran.returncode == 0, ran.stdout
    assert json.dumps("WARNING") not in ran.stdout
