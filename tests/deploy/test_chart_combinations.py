"""All combinations of the chart's switches, validated as far as that is possible without a cluster.

Helm renders, kubernetes-validate has the schemas of Kubernetes, npm's @kubernetes-models those of
custom resources. Needs `make tools`, and npm.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import chart
from tests.support.chart import MINIMAL, Object, Values, helm, merged, objects

pytestmark = pytest.mark.deploy

# The oldest that the chart takes, the newest, and one between.
VERSIONS = ["1.31", "1.34", "1.37"]
CUSTOM = {"external-secrets.io/v1", "gateway.networking.k8s.io/v1", "monitoring.coreos.com/v1"}
MODELS = (
    "@kubernetes-models/external-secrets@2.0.0",
    "@kubernetes-models/gateway-api@2.0.0",
    "@kubernetes-models/prometheus-operator@6.0.0",
)
NPM = chart.DEPLOY.parent / ".npm-tools" / "kubernetes-models"

ON = {"enabled": True}
ROUTE = ON | {"parentRefs": [{"name": "public"}], "hostnames": ["tasks.example.com"]}
STORE = {"secretStoreRef": {"kind": "ClusterSecretStore", "name": "vault"}, "extract": "tasks"}
KEYS = {"SECRET_KEY": "k" * 32, "DATABASE_URL": "postgresql://tasks@db/tasks"}
EXTRAS: Values = {
    "extraEnv": [{"name": "A", "value": "b"}],
    "extraEnvFrom": [{"secretRef": {"name": "extra"}}],
    "extraVolumes": [{"name": "ca", "configMap": {"name": "ca"}}],
    "extraVolumeMounts": [{"name": "ca", "mountPath": "/ca"}],
    "podAnnotations": {"a": "b"},
    "podLabels": {"c": "d"},
}
MORE: Values = EXTRAS | {
    "migration": EXTRAS
    | {"annotations": {"a": "b"}, "serviceAccount": {"annotations": {"a": "b"}}},
    "extraContainers": [{"name": "proxy", "image": "registry.example.com/proxy:1"}],
    "extraObjects": [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "extra"}}],
    "imagePullSecrets": [{"name": "pull"}],
    "commonLabels": {"team": "tasks"},
    "annotations": {"a": "b"},
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"key": "spot", "operator": "Exists"}],
    "priorityClassName": "high",
    "preStopSeconds": 5,
    "serviceAccount": {"annotations": {"a": "b"}},
    "service": {"type": "LoadBalancer", "trafficDistribution": "PreferClose"},
}


def secrets(source: Values) -> Values:
    both = {"existingSecret": ""} | source
    return {"secrets": both, "migration": {"secrets": both}}


# Each switch is the values of its positions.
OF_PODS: list[list[Values]] = [
    [{"migration": {"mode": mode}} for mode in ("hook", "argocd", "job", "none")],
    [{}, secrets({"externalSecret": STORE}), secrets({"values": KEYS})],
    [{}, {"tls": {"secretName": "tls"}}],
    [{}, {"gateway": ON | {"image": {"repository": "registry.example.com/gateway"}}}],
    [{}, {"autoscaling": ON | {"targetCalls": 24}}],
    [{}, {"probes": {"command": ["python", "-m", "server.network.probe"]}}],
    [{}, MORE],
]
OF_OBJECTS: list[list[Values]] = [
    [{}, {"ingress": ON | {"className": "nginx", "tlsSecretName": "public"}}],
    [{}, {"grpcRoute": ROUTE}],
    [{}, {"gateway": {"ingress": ON}}],
    [{}, {"gateway": {"httpRoute": ROUTE}}],
    [{}, {"serviceMonitor": ON | {"labels": {"release": "prometheus"}}}],
    [{}, {"prometheusRule": ON}],
    [{}, {"podDisruptionBudget": {"enabled": False}}],
    [
        {},
        {"networkPolicy": {"enabled": False}},
        {"networkPolicy": {"from": [{"podSelector": {}}], "egress": [{"ports": [{"port": 5432}]}]}},
    ],
]


def combinations() -> Iterator[Values]:
    """Yield all positions of the pods' switches, beside all of the others' in another order."""
    pods = list(itertools.product(*OF_PODS))
    others = list(itertools.product(*OF_OBJECTS))
    assert len(pods) == len(others)
    random.Random(1).shuffle(others)  # noqa: S311
    for one, other in zip(pods, others, strict=True):
        values = MINIMAL
        for switch in (*one, *other):
            values = merged(values, switch)
        yield values


def text(values: Values, program: str = chart.HELM) -> str:
    ran = helm("template", "prod", chart.CHART, values=values, program=program)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def rendered() -> list[list[Object]]:
    """The objects of each combination; the same text is the same object."""
    parsed: dict[str, Object | None] = {}
    with ThreadPoolExecutor(os.cpu_count()) as renderers:
        texts = renderers.map(text, combinations())
        releases = [release.split("\n---\n") for release in texts]
    for document in set(itertools.chain(*releases)):
        parsed[document] = next(objects(document), None)
    return [[found for part in release if (found := parsed[part])] for release in releases]


@pytest.fixture(scope="module")
def by_kind(rendered: list[list[Object]]) -> dict[tuple[str, str], list[Object]]:
    """The different objects of all combinations, by version of the API and kind."""
    different = {id(found): found for release in rendered for found in release}
    kinds = defaultdict(list)
    for found in different.values():
        kinds[found["apiVersion"], found["kind"]].append(found)
    return kinds


def test_names_of_a_release_are_different(rendered: list[list[Object]]) -> None:
    """Of two objects with one name, Helm keeps the last."""
    for release in rendered:
        names = [(found["kind"], found["metadata"]["name"]) for found in release]
        assert len(set(names)) == len(names)


def test_helm_3_renders_the_same(rendered: list[list[Object]]) -> None:
    def key(found: Object) -> tuple[str, str]:
        return found["kind"], found["metadata"]["name"]

    for values, release in itertools.islice(
        zip(combinations(), rendered, strict=True), 0, None, 12
    ):
        others = objects(text(values, chart.HELM3))
        assert sorted(others, key=key) == sorted(release, key=key)


@pytest.mark.parametrize("version", VERSIONS)
def test_objects_satisfy_the_schema_of_kubernetes(
    by_kind: dict[tuple[str, str], list[Object]], version: str, tmp_path: Path
) -> None:
    """A List holds all of a kind, so that a schema is read once."""
    lists = tmp_path / "lists.yaml"
    lists.write_text(
        "\n---\n".join(
            json.dumps({"apiVersion": api, "kind": f"{kind}List", "metadata": {}, "items": found})
            for (api, kind), found in by_kind.items()
            if api not in CUSTOM
        )
    )
    options = ["--strict", "--quiet", "--kubernetes-version", version]
    ran = run(chart.TOOLS / "kubernetes-validate", *options, lists)
    assert (ran.returncode, ran.stdout) == (0, "")


@pytest.fixture(scope="module")
def models() -> Path:
    """The folder with npm's models, installed once."""
    if shutil.which("npm") is None:
        pytest.fail("npm is not installed")
    if not (NPM / "node_modules").exists():
        NPM.mkdir(parents=True, exist_ok=True)
        options = ("--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts")
        ran = run("npm", "install", "--prefix", NPM, *options, *MODELS)
        assert ran.returncode == 0, ran.stderr
    return NPM


def test_custom_resources_satisfy_their_schemas(
    by_kind: dict[tuple[str, str], list[Object]], models: Path
) -> None:
    custom = [found for (api, _), each in by_kind.items() if api in CUSTOM for found in each]
    assert {found["kind"] for found in custom} == {
        *("ExternalSecret", "GRPCRoute", "HTTPRoute", "PrometheusRule", "ServiceMonitor")
    }
    script = (chart.DEPLOY / "helm" / "crds.mjs").read_text()
    node = ("node", "--input-type=module", "--eval", script)
    ran = run(*node, cwd=models, stdin=json.dumps(custom))
    assert ran.returncode == 0, ran.stderr


# --- Scanners -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def production(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the chart as production has it, and all its objects."""
    values = merged(
        OF_PODS[3][1] | {"image": {"repository": "registry.example.com/x"}},
        {"ingress": ON | {"tlsSecretName": "public"}, "gateway": {"ingress": ON}},
    )
    digests = {"image": {"digest": "sha256:" + "0" * 64}}
    values = merged(values, digests | {"gateway": digests})
    file = f"--values={chart.CHART / 'values-production.yaml'}"
    ran = helm("template", "prod", chart.CHART, file, values=values)
    assert ran.returncode == 0, ran.stderr
    folder = tmp_path_factory.mktemp("production")
    (folder / "rendered.yaml").write_text(ran.stdout)
    return folder


def test_trivy_finds_nothing_that_is_not_explained(production: Path) -> None:
    ignored = f"--ignorefile={chart.DEPLOY / 'helm' / 'trivyignore.yaml'}"
    options = ("--skip-check-update", "--quiet", "--exit-code=1", ignored)
    ran = run(chart.TOOLS / "trivy", "config", *options, production)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_checkov_finds_nothing_that_is_not_explained(production: Path) -> None:
    config = chart.DEPLOY / "helm" / "checkov.yaml"
    ran = run(chart.TOOLS / "checkov", "--config-file", config, "--directory", production)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def run(
    *command: str | Path, cwd: Path | None = None, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, input=stdin, capture_output=True, text=True, timeout=120, check=False
    )
