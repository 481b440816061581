"""What the Helm chart renders. Needs `make tools`: `make helm-check` runs it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url

from server.network import health
from server.settings import Settings
from tests.support import chart
from tests.support.chart import container, pod, refusal, rendered, the

pytestmark = pytest.mark.deploy

HOOK = "helm.sh/hook"
WEIGHT = "helm.sh/hook-weight"
OWNER = {"DATABASE_URL": "postgresql://owner@db/tasks"}
SERVICE = {"SECRET_KEY": "k" * 32, "DATABASE_URL": "postgresql://tasks@db/tasks"}


def migration(mode: str, **more: Any) -> chart.Values:
    return {"migration": {"mode": mode, **more}}


def annotations_of(found: chart.Object) -> dict[str, str]:
    return dict(found["metadata"].get("annotations", {}))


def environment(of: chart.Object) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in of["env"]}


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], Settings]:
    """Load the settings of an environment."""

    def loaded(given: dict[str, str]) -> Settings:
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        return Settings.load()

    return loaded


# --- Pods ---------------------------------------------------------------------------------------


def test_probes_ask_for_the_names_that_the_server_answers() -> None:
    found = container(rendered())
    probes = {
        "startupProbe": health.STARTUP,
        "livenessProbe": health.LIVENESS,
        "readinessProbe": health.READINESS,
    }
    for probe, service in probes.items():
        assert found[probe]["grpc"] == {"port": 50052, "service": service}


def test_probe_by_a_command_gets_the_name_of_the_health_service() -> None:
    command = ["python", "-m", "server.network.probe"]
    found = container(rendered({"probes": {"command": command}}))
    assert found["livenessProbe"]["exec"]["command"] == [*command, health.LIVENESS]
    assert found["readinessProbe"]["exec"]["command"] == [*command, health.READINESS]


def test_pod_waits_for_the_schema_as_long_as_it_says() -> None:
    found = rendered({"probes": {"startupSeconds": 1201, "periodSeconds": 10}})
    probe = container(found)["startupProbe"]
    assert probe["failureThreshold"] * probe["periodSeconds"] == 1210
    assert the("Deployment", found)["spec"]["progressDeadlineSeconds"] > 1201


def test_grace_period_is_the_drain_and_a_margin() -> None:
    drain = {"SHUTDOWN_DELAY_SECONDS": 7.5, "SHUTDOWN_GRACE_SECONDS": 60}
    found = rendered({"config": drain, "preStopSeconds": 4})
    assert pod(found)["terminationGracePeriodSeconds"] == 4 + 8 + 60 + 15
    assert container(found)["lifecycle"]["preStop"]["sleep"] == {"seconds": 4}
    assert "lifecycle" not in container(rendered())


def test_grace_period_that_would_cut_calls_off_is_refused() -> None:
    assert "must be 50 or more" in refusal({"terminationGracePeriodSeconds": 49})
    assert (
        pod(rendered({"terminationGracePeriodSeconds": 50}))["terminationGracePeriodSeconds"] == 50
    )


def test_replicas_are_the_autoscalers_while_it_is_on() -> None:
    assert the("Deployment", rendered())["spec"]["replicas"] == 3
    found = rendered({"autoscaling": {"enabled": True, "targetCalls": 24}})
    assert "replicas" not in the("Deployment", found)["spec"]
    cpu, calls = the("HorizontalPodAutoscaler", found)["spec"]["metrics"]
    assert cpu["containerResource"]["target"]["averageUtilization"] == 70
    assert calls["pods"] == {
        "metric": {"name": "taskservice_server_calls"},
        "target": {"type": "AverageValue", "averageValue": "24"},
    }


def test_selectors_depend_on_nothing_but_the_release() -> None:
    """They are immutable: another one would make every upgrade fail."""
    changed = {
        "commonLabels": {"team": "billing"},
        "podLabels": {"tier": "backend"},
        "image": {"tag": "9.9.9"},
        "fullnameOverride": "other",
    }
    one, other = the("Deployment", rendered()), the("Deployment", rendered(changed), "other")
    assert one["spec"]["selector"] == other["spec"]["selector"]
    labels = other["spec"]["template"]["metadata"]["labels"]
    assert labels.items() >= {**one["spec"]["selector"]["matchLabels"], "tier": "backend"}.items()


def test_all_that_selects_pods_selects_those_of_the_service_only() -> None:
    found = rendered({"gateway": {"enabled": True, "image": {"repository": "gateway"}}})
    pods = the("Deployment", found)["spec"]["selector"]["matchLabels"]
    job = the("Job", found, "prod-task-service-migrate")["spec"]["template"]["metadata"]["labels"]
    assert not pods.items() <= job.items()
    services = [item["spec"]["selector"] for item in found if item["kind"] == "Service"]
    assert services == [pods] * 3
    assert the("PodDisruptionBudget", found)["spec"]["selector"]["matchLabels"] == pods
    for constraint in pod(found)["topologySpreadConstraints"]:
        assert constraint["labelSelector"]["matchLabels"] == pods


def test_attributes_of_telemetry_are_added_to_those_of_the_pod() -> None:
    config = {"OTEL_RESOURCE_ATTRIBUTES": "team=billing"}
    env = {item["name"]: item for item in container(rendered({"config": config}))["env"]}
    attributes = "k8s.namespace.name=tasks,k8s.pod.name=$(POD_NAME),team=billing"
    assert env["OTEL_RESOURCE_ATTRIBUTES"]["value"] == attributes


def test_change_of_a_setting_restarts_pods() -> None:
    def checksum(**config: object) -> str:
        found = the("Deployment", rendered({"config": config}))
        return annotations_of(found["spec"]["template"])["checksum/config"]

    assert checksum() == checksum()
    assert checksum(LOG_LEVEL="DEBUG") != checksum()


def test_new_version_of_the_chart_alone_replaces_no_pods(tmp_path: Path) -> None:
    newer = shutil.copytree(chart.CHART, tmp_path / "newer")
    about = newer / "Chart.yaml"
    about.write_text(about.read_text().replace("version: 0.1.0", "version: 0.2.0"))
    one, other = rendered(), rendered(path=newer)
    assert one != other
    templates = [the("Deployment", found)["spec"]["template"] for found in (one, other)]
    assert templates[0] == templates[1]


def test_ports_are_those_of_the_settings() -> None:
    config = {"GRPC_PORT": 6001, "HEALTH_PORT": 6002, "METRICS_PORT": 6003}
    found = rendered({"config": config})
    ports = {item["name"]: item["containerPort"] for item in container(found)["ports"]}
    assert ports == {"grpc": 6001, "health": 6002, "metrics": 6003}
    headless = the("Service", found, "prod-task-service-headless")["spec"]
    assert headless["clusterIP"] == "None"
    assert {item["name"]: item["port"] for item in headless["ports"]} == {
        "grpc": 6001,
        "metrics": 6003,
    }
    # A load balancer must not publish metrics.
    assert [item["name"] for item in the("Service", found)["spec"]["ports"]] == ["grpc"]


def test_gateway_never_waits_for_the_service_to_start() -> None:
    """The kubelet starts the service after the startup probe of a sidecar."""
    found = rendered({"gateway": {"enabled": True, "image": {"repository": "gateway"}}})
    (gateway,) = pod(found)["initContainers"]
    assert gateway["restartPolicy"] == "Always"
    assert "startupProbe" not in gateway
    assert "envFrom" not in gateway


def test_gateway_serves_by_the_certificate_of_the_service() -> None:
    gateway = {"enabled": True, "image": {"repository": "gateway"}}
    found = rendered({"gateway": gateway, "tls": {"secretName": "tls"}})
    (sidecar,) = pod(found)["initContainers"]
    assert sidecar["readinessProbe"]["httpGet"]["scheme"] == "HTTPS"
    (mount,) = sidecar["volumeMounts"]
    for name in ("TLS_CERT_FILE", "TLS_KEY_FILE"):
        assert environment(sidecar)[name].startswith(mount["mountPath"])
    (volume,) = (each for each in pod(found)["volumes"] if each["name"] == mount["name"])
    assert volume["secret"] == {"secretName": "tls", "defaultMode": 0o440}


def test_ports_without_credentials_are_open_within_the_cluster_at_most() -> None:
    """A node may always probe its own pods."""
    calls, metrics = the("NetworkPolicy", rendered())["spec"]["ingress"]
    assert calls == {"ports": [{"port": "grpc"}]}
    assert metrics == {"ports": [{"port": "metrics"}], "from": [{"namespaceSelector": {}}]}


# --- Settings -----------------------------------------------------------------------------------


def test_config_map_holds_settings_of_the_service() -> None:
    found = rendered({"tls": {"secretName": "tls", "clientCA": True}})
    names = the("ConfigMap", found)["data"].keys()
    assert names <= chart.settings_of_the_example()
    assert {"TLS_CERT_FILE", "TLS_KEY_FILE", "TLS_CLIENT_CA_FILE", "GRPC_HOST"} <= names


@pytest.mark.parametrize("program", [chart.HELM, chart.HELM3])
def test_numbers_are_not_written_in_exponents(program: str) -> None:
    config = {
        "RATE_LIMIT_PER_SECOND": 1_000_000,
        "EVENT_RETENTION_DAYS": 0.5,
        "OTEL_ENABLED": False,
    }
    data = the("ConfigMap", rendered({"config": config}, program=program))["data"]
    assert [data[name] for name in config] == ["1000000", "0.5", "false"]


@pytest.mark.parametrize("name", ["development", "staging", "production"])
def test_service_accepts_the_settings_of_each_environment(
    name: str, load: Callable[[dict[str, str]], Settings]
) -> None:
    image = {"image": {"repository": "registry.example.com/task-service"}}
    found = rendered(image, f"values-{name}.yaml", base={})
    given = the("ConfigMap", found)["data"] | SERVICE
    settings = load(given)
    assert settings.environment == name
    assert settings.worker_count == int(given["WORKERS"])


@pytest.mark.parametrize("values", [{}, {"config": {"DB_HOST": "db", "DB_PORT": 5433}}])
def test_migration_needs_no_settings_but_those_of_the_database(
    values: chart.Values, load: Callable[[dict[str, str]], Settings]
) -> None:
    found = the("Job", rendered(values), "prod-task-service-migrate")
    (migration,) = found["spec"]["template"]["spec"]["containers"]
    secret = {"DB_USER": "owner", "DB_PASSWORD": "p"} if values else OWNER
    url = load(environment(migration) | secret).explicit_database_url
    assert url is not None
    assert make_url(url).username == "owner"
    assert make_url(url).host == "db"


def test_gateway_accepts_its_settings_without_secrets(
    load: Callable[[dict[str, str]], Settings],
) -> None:
    config = {"HTTP_PORT": 8081, "CORS_ORIGINS": "https://a.example.com,https://b.example.com"}
    on = {"enabled": True, "image": {"repository": "gateway"}, "config": config}
    (gateway,) = pod(rendered({"gateway": on}))["initContainers"]
    settings = load(environment(gateway))
    assert (settings.http_port, settings.grpc_port) == (8081, 50051)
    assert settings.cors_origins == config["CORS_ORIGINS"]


def test_notes_say_how_many_connections_the_release_may_open() -> None:
    settings = Settings(database_url=SERVICE["DATABASE_URL"], workers=2, threads_per_worker=6)
    notes = chart.notes({"replicas": 3, "config": {"THREADS_PER_WORKER": 6}})
    assert f"must accept {4 * settings.database_connections} connections" in notes


# --- Secrets and the migration ------------------------------------------------------------------


def test_what_the_hook_needs_exists_before_it() -> None:
    both = {"secrets": {"existingSecret": "", "values": SERVICE}} | migration(
        "hook", secrets={"existingSecret": "", "values": OWNER}
    )
    found = rendered(both)
    job = the("Job", found, "prod-task-service-migrate")
    spec = job["spec"]["template"]["spec"]
    (source,) = spec["containers"][0]["envFrom"]
    needed = [
        the("Secret", found, source["secretRef"]["name"]),
        the("ServiceAccount", found, spec["serviceAccountName"]),
    ]
    for one in needed:
        assert annotations_of(one)[HOOK] == annotations_of(job)[HOOK] == "pre-install,pre-upgrade"
        assert int(annotations_of(one)[WEIGHT]) < int(annotations_of(job)[WEIGHT])
        assert annotations_of(one)["helm.sh/hook-delete-policy"].endswith("hook-succeeded")
    # The log of a migration stays.
    assert annotations_of(job)["helm.sh/hook-delete-policy"] == "before-hook-creation"


@pytest.mark.parametrize("mode", ["hook", "argocd", "job"])
def test_hook_needs_no_object_of_the_release_itself(mode: str) -> None:
    """Objects of the release do not exist when a hook runs; those of another Secret never would."""
    found = rendered({"secrets": {"existingSecret": "", "values": SERVICE}} | migration(mode))
    (job,) = (item for item in found if item["kind"] == "Job")
    spec = job["spec"]["template"]["spec"]
    assert (
        spec["serviceAccountName"]
        == "prod-task-service-migrate"
        != pod(found)["serviceAccountName"]
    )
    assert spec["containers"][0]["envFrom"] == [{"secretRef": {"name": "tasks-owner"}}]
    assert [volume["name"] for volume in spec["volumes"]] == ["tmp"]
    assert HOOK not in annotations_of(the("Secret", found))


def test_job_has_a_new_name_for_each_revision_and_each_content() -> None:
    """A Job is immutable, and tools that render templates always say revision 1."""

    def name(**values: Any) -> str:
        found = rendered(migration("job") | values)
        (job,) = (item for item in found if item["kind"] == "Job")
        assert HOOK not in annotations_of(job)
        assert job["spec"]["ttlSecondsAfterFinished"] > 0
        return str(job["metadata"]["name"])

    assert name() == name()
    assert name(image={"tag": "9.9.9"}) != name()
    assert "-1-" in name()
    assert len(name(fullnameOverride="a" * 100)) <= 63


def test_argo_migrates_in_a_wave_before_all_else() -> None:
    found = rendered(migration("argocd", secrets={"existingSecret": "", "values": OWNER}))
    waves = {
        (item["kind"], item["metadata"]["name"]): annotations_of(item)[
            "argocd.argoproj.io/sync-wave"
        ]
        for item in found
        if "argocd.argoproj.io/sync-wave" in annotations_of(item)
    }
    name = "prod-task-service-migrate"
    assert waves == {("ServiceAccount", name): "-2", ("Secret", name): "-2", ("Job", name): "-1"}
    assert annotations_of(the("Job", found, name))["argocd.argoproj.io/hook"] == "Sync"
    assert not any(HOOK in annotations_of(item) for item in found)


def test_without_a_migration_there_is_nothing_of_it() -> None:
    found = rendered(migration("none", secrets={"existingSecret": ""}))
    labels = "app.kubernetes.io/component"
    assert {item["metadata"]["labels"][labels] for item in found} == {"service"}


def test_migration_and_service_have_secrets_of_their_own() -> None:
    store = {"secretStoreRef": {"kind": "ClusterSecretStore", "name": "vault"}}
    service = {"existingSecret": "", "externalSecret": store | {"extract": "tasks"}}
    owner = {
        "existingSecret": "",
        "externalSecret": store | {"data": {"DATABASE_URL": {"key": "owner", "property": "url"}}},
    }
    found = rendered({"secrets": service} | migration("hook", secrets=owner))
    assert the("ExternalSecret", found)["spec"]["dataFrom"] == [{"extract": {"key": "tasks"}}]
    hooked = the("ExternalSecret", found, "prod-task-service-migrate")
    assert HOOK in annotations_of(hooked)
    assert hooked["spec"]["data"] == [
        {"secretKey": "DATABASE_URL", "remoteRef": {"key": "owner", "property": "url"}}
    ]


def test_extras_are_templates_for_the_pods_and_for_the_job() -> None:
    extras: chart.Values = {
        "extraEnv": [{"name": "PGSSLROOTCERT", "value": "/ca/{{ .Release.Name }}.crt"}],
        "extraEnvFrom": [{"secretRef": {"name": "{{ .Release.Name }}-extra"}}],
        "extraVolumes": [{"name": "ca", "configMap": {"name": "{{ .Release.Name }}-ca"}}],
        "extraVolumeMounts": [{"name": "ca", "mountPath": "/ca"}],
        "podAnnotations": {"example.com/release": "{{ .Release.Name }}"},
    }
    found = rendered(
        extras | migration("hook", **extras) | {"imagePullSecrets": [{"name": "pull"}]}
    )
    job = the("Job", found, "prod-task-service-migrate")
    for template in (the("Deployment", found)["spec"]["template"], job["spec"]["template"]):
        spec, (first,) = template["spec"], template["spec"]["containers"]
        assert {"name": "PGSSLROOTCERT", "value": "/ca/prod.crt"} in first["env"]
        assert {"secretRef": {"name": "prod-extra"}} in first["envFrom"]
        assert {"name": "ca", "configMap": {"name": "prod-ca"}} in spec["volumes"]
        assert {"name": "ca", "mountPath": "/ca"} in first["volumeMounts"]
        assert annotations_of(template)["example.com/release"] == "prod"
        assert spec["imagePullSecrets"] == [{"name": "pull"}]


def test_extra_objects_are_templates() -> None:
    extra = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "{{ .Release.Name }}-x"}}
    assert the("ConfigMap", rendered({"extraObjects": [extra]}), "prod-x")


# --- Monitoring ---------------------------------------------------------------------------------


def test_metrics_get_a_job_that_the_rules_take() -> None:
    """The rules take jobs whose name ends in "task-service"."""
    for name, job in (("", "tasks/prod-task-service"), ("other", "tasks/other-task-service")):
        found = rendered({"fullnameOverride": name, "serviceMonitor": {"enabled": True}})
        (monitor,) = (item for item in found if item["kind"] == "ServiceMonitor")
        (endpoint,) = monitor["spec"]["endpoints"]
        assert endpoint["relabelings"] == [{"targetLabel": "job", "replacement": job}]
        selected = monitor["spec"]["selector"]["matchLabels"]
        services = [item for item in found if item["kind"] == "Service"]
        (service,) = (
            item for item in services if selected.items() <= item["metadata"]["labels"].items()
        )
        assert endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]


def test_rules_are_those_of_the_repository() -> None:
    found = the("PrometheusRule", rendered({"prometheusRule": {"enabled": True}}))
    assert found["spec"]["groups"] == chart.rule_groups()


def test_alerts_lead_to_the_runbooks_that_the_values_name() -> None:
    values = {"prometheusRule": {"enabled": True, "runbooks": "https://wiki.example.com"}}
    for group in the("PrometheusRule", rendered(values))["spec"]["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                url = f"https://wiki.example.com/{rule['alert']}.md"
                assert rule["annotations"]["runbook_url"] == url
