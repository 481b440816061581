"""Render the Helm chart with the programs of `make tools`."""

from __future__ import annotations

import functools
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from tests.support.prometheus import OBSERVABILITY, RULES

Values: TypeAlias = dict[str, Any]
Object: TypeAlias = dict[str, Any]

DEPLOY = OBSERVABILITY.parent
CHART = DEPLOY / "helm" / "task-service"
TOOLS = DEPLOY.parent / ".tools" / "bin"
HELM, HELM3 = "helm", "helm3"

MINIMAL: Values = {
    "image": {"repository": "registry.example.com/task-service"},
    "config": {"AUTH_MODE": "jwt", "TLS_TERMINATED_UPSTREAM": True},
    "secrets": {"existingSecret": "tasks"},
    "migration": {"secrets": {"existingSecret": "tasks-owner"}},
}
"""The least that production needs."""


def merged(one: Values, other: Values) -> Values:
    """Return values with others over them, as Helm merges files of values."""
    maps = [key for key in one.keys() & other.keys() if isinstance(one[key], dict)]
    return one | other | {key: merged(one[key], other[key]) for key in maps}


def helm(
    *command: str | Path, values: Values, program: str = HELM
) -> subprocess.CompletedProcess[str]:
    """Run Helm; the values take precedence over those of files."""
    return subprocess.run(
        [TOOLS / program, *command, "--namespace", "tasks", "--values", "-"],
        input=json.dumps(values),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def rendered(
    values: Values | None = None,
    *files: str,
    base: Values = MINIMAL,
    program: str = HELM,
    path: Path = CHART,
) -> list[Object]:
    """Render the chart with files of values, the base over them, and further values over both."""
    given = [f"--values={CHART / name}" for name in files]
    everything = merged(base, values or {})
    ran = helm("template", "prod", path, *given, values=everything, program=program)
    assert ran.returncode == 0, ran.stderr
    return list(objects(ran.stdout))


def objects(text: str) -> Iterator[Object]:
    """Parse the objects of a rendered chart."""
    return filter(None, yaml.load_all(text, yaml.CSafeLoader))


def refusal(values: Values, *, base: Values = MINIMAL) -> str:
    """Return what Helm says of values that it refuses."""
    ran = helm("template", "prod", CHART, values=merged(base, values))
    assert ran.returncode != 0
    return ran.stderr


def notes(values: Values) -> str:
    """Return what Helm says after it has installed the chart."""
    ran = helm("install", "prod", CHART, "--dry-run=client", values=merged(MINIMAL, values))
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.partition("NOTES:")[2]


def rule_groups() -> list[Object]:
    """Return the groups of the rules that ship."""
    files = sorted(RULES.glob("*.yml"))
    return [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]


def the(kind: str, found: list[Object], name: str = "prod-task-service") -> Object:
    """Return the object of a kind and a name."""
    (one,) = (item for item in found if (item["kind"], item["metadata"]["name"]) == (kind, name))
    return one


def pod(found: list[Object]) -> Object:
    """Return the spec of the service's pods."""
    spec: Object = the("Deployment", found)["spec"]["template"]["spec"]
    return spec


def container(found: list[Object]) -> Object:
    """Return the service's container."""
    (one,) = pod(found)["containers"]
    return dict(one)


@functools.cache
def settings_of_the_example() -> frozenset[str]:
    """Return the names of all settings."""
    lines = (DEPLOY.parent / ".env.example").read_text().splitlines()
    return frozenset(line.partition("=")[0] for line in lines if line[:1].isupper())
