"""What the chart repeats is current; `python -m deploy.helm.renew` renews it. No Helm is needed."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from typing import Any

import yaml

from deploy.helm import renew
from server.settings import Settings
from tests.support import chart

SCHEMA = json.loads((chart.CHART / "values.schema.json").read_text())
# Set by `secrets`, by `tls`, and by `gateway`; DATA_DIR is the embedded database's.
FIELDS = Settings.model_fields.items()
SECRET = {name.upper() for name, field in FIELDS if "SecretStr" in str(field.annotation)}
FILES = {"TLS_CERT_FILE", "TLS_KEY_FILE", "TLS_CLIENT_CA_FILE"}
NOT_IN_CONFIG = SECRET | FILES | {"HTTP_PORT", "CORS_ORIGINS", "DATA_DIR"}


def test_rules_are_copies_of_those_that_are_tested() -> None:
    """A package of a chart holds no files from outside of it."""
    copies = {path.name: path.read_text() for path in (chart.CHART / "rules").iterdir()}
    assert copies == {path.name: path.read_text() for path in renew.RULES.glob("*.yml")}


def test_chart_installs_the_version_of_the_service() -> None:
    project = tomllib.loads((chart.DEPLOY.parent / "pyproject.toml").read_text())["project"]
    assert (
        yaml.safe_load((chart.CHART / "Chart.yaml").read_text())["appVersion"] == project["version"]
    )


def test_readme_has_the_values_as_they_are() -> None:
    assert renew.README.read_text() == renew.text()


def test_schema_knows_the_settings_of_the_service() -> None:
    _, names = SCHEMA["properties"]["config"]["propertyNames"]["anyOf"]
    assert set(names["enum"]) == chart.settings_of_the_example() - NOT_IN_CONFIG


def test_values_list_all_names_that_the_schema_knows() -> None:
    """The other way round, Helm refuses the values."""
    values = yaml.safe_load((chart.CHART / "values.yaml").read_text())
    assert set(_unlisted(SCHEMA, values)) == {"global", "enabled", "gateway.config.CORS_ORIGINS"}


def _unlisted(schema: Any, values: Any, path: str = "") -> Iterator[str]:
    """Yield the paths of the values that a schema knows by name, and that are not there."""
    name = schema.get("$ref", "").rpartition("/")[2]
    schema = SCHEMA["definitions"].get(name, schema)
    if values and schema.get("additionalProperties") is False:
        for key, part in schema["properties"].items():
            if key in values:
                yield from _unlisted(part, values[key], f"{path}{key}.")
            else:
                yield f"{path}{key}"
