"""deploy/terraform: what a parser of HCL and the arguments of the AWS provider tell without AWS."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml

from server.settings import Settings
from tests.support.terraform import ROOT, attributes, mistakes, parse

pytestmark = pytest.mark.deploy

MODULE = ROOT / "deploy" / "terraform"
EXAMPLE = MODULE / "examples" / "production"
CHART = ROOT / "deploy" / "helm" / "task-service"
REFERENCE = r"(?<![\w.\"/])(?:data\.aws_\w+|aws_\w+|local)\.\w+"
FOLDERS = pytest.mark.parametrize("folder", [MODULE, EXAMPLE], ids=["module", "example"])


def written(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.glob("*.tf")))


@FOLDERS
def test_every_variable_has_a_type_and_a_description(folder: Path) -> None:
    for name, [variable] in parse(folder).variable.items():
        assert {"type", "description"} <= variable.keys(), name


@FOLDERS
def test_every_variable_is_used(folder: Path) -> None:
    """A validation of the variable itself is no use."""
    for name, [variable] in parse(folder).variable.items():
        use = re.compile(rf"\bvar\.{name}\b")
        assert len(use.findall(written(folder))) > len(use.findall(json.dumps(variable))), name


@FOLDERS
def test_every_output_has_a_description(folder: Path) -> None:
    for name, [output] in parse(folder).output.items():
        assert "description" in output, name


def test_the_example_sets_variables_that_exist() -> None:
    variables = parse(MODULE).variable
    required = {name for name, [variable] in variables.items() if "default" not in variable}
    [call] = parse(EXAMPLE).module["task_service"]
    assert required <= call.keys() - {"source"} <= variables.keys()


def test_what_is_referred_to_exists() -> None:
    module = parse(MODULE)
    declared = {f"{kind}.{name}" for kind, name, _ in module.blocks()}
    declared |= {f"local.{name}" for name in module.locals}
    assert set(re.findall(REFERENCE, written(MODULE))) - declared == set()


def test_every_argument_is_one_of_the_provider() -> None:
    """`terraform validate` needs the provider itself; its bindings list the same arguments."""
    found = {
        f"{kind}.{name}": wrong
        for kind, name, body in parse(MODULE).blocks()
        if (wrong := mistakes(kind, body))
    }
    assert found == {}


def test_every_attribute_that_is_read_exists() -> None:
    reads = re.findall(r"\b((?:data\.)?aws_\w+)\.\w+(?:\[[^]]+\])?\.(\w+)", written(MODULE))
    assert len(reads) > 50
    assert {read for read in reads if read[1] not in attributes(read[0])} == set()


def test_an_unknown_and_a_missing_argument_are_found() -> None:
    assert sorted(mistakes("aws_eks_cluster", {"name": "a", "role_arn": "b", "colour": "c"})) == [
        "colour is unknown",
        "vpc_config is required",
    ]


def test_blocks_do_not_need_each_other_in_a_circle() -> None:
    module = parse(MODULE)
    bodies = {f"{kind}.{name}": str(body) for kind, name, body in module.blocks()}
    bodies |= {f"local.{name}": str(value) for name, value in module.locals.items()}
    needs = {name: set(re.findall(REFERENCE, body)) for name, body in bodies.items()}
    assert len(list(TopologicalSorter(needs).static_order())) == len(bodies)


def test_the_database_accepts_the_connections_of_a_worker() -> None:
    each = Settings.own_connections + Settings.pool_overflow + 1
    assert f"threads_per_worker + {each})" in str(parse(MODULE).locals["connections_per_pod"])


def test_no_generated_secret_is_in_the_state() -> None:
    """Only ephemeral values and write-only arguments are kept out of it."""
    assert "random_password" not in parse(MODULE).resource
    [secret] = parse(MODULE).resource["aws_secretsmanager_secret_version"]["this"]
    assert secret.keys() & {"secret_string", "secret_string_wo"} == {"secret_string_wo"}


def test_all_rules_of_prometheus_are_loaded() -> None:
    [namespaces] = parse(MODULE).resource["aws_prometheus_rule_group_namespace"]["this"]
    names = re.findall(r'"(\w+)"', str(namespaces["for_each"]))
    rules = (ROOT / "deploy" / "observability" / "rules").glob("*.yml")
    assert sorted(names) == sorted(path.stem for path in rules)


def keys(values: object, path: str = "") -> Iterator[str]:
    if isinstance(values, dict):
        for key, value in values.items():
            yield f"{path}{key}"
            yield from keys(value, f"{path}{key}.")


@pytest.mark.skipif(not CHART.exists(), reason="needs the chart")
def test_values_for_the_chart_are_values_of_it() -> None:
    """Below these are settings, and fields of External Secrets."""
    free = re.compile(r"(config|data|secretStoreRef)\.")
    known = set(keys(yaml.safe_load((CHART / "values.yaml").read_text())))
    unknown = set(keys(parse(MODULE).locals["helm_values"])) - known
    assert [key for key in unknown if not free.search(key)] == []
