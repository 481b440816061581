"""The configurations of collectors, as far as they can be read without a collector."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.support.prometheus import OBSERVABILITY


@pytest.fixture(params=["alone", "aws"])
def collector(request: pytest.FixtureRequest) -> Any:
    if request.param == "alone":
        return yaml.safe_load((OBSERVABILITY / "collector.yaml").read_text())
    values = OBSERVABILITY.parent / "terraform" / "collector.yaml"
    return yaml.safe_load(values.read_text())["alternateConfig"]


def test_pipelines_use_all_components_that_are_defined_and_no_other(collector: Any) -> None:
    pipelines = collector["service"]["pipelines"].values()
    for kind in ("receivers", "processors", "exporters"):
        used = {name for pipeline in pipelines for name in pipeline[kind]}
        assert used == set(collector[kind])
    assert collector["service"]["extensions"] == list(collector["extensions"])


def test_memory_is_limited_before_anything_else_is_done(collector: Any) -> None:
    for pipeline in collector["service"]["pipelines"].values():
        assert pipeline["processors"][0] == "memory_limiter"


def test_metrics_are_scraped_from_the_service(collector: Any) -> None:
    (scrape,) = collector["receivers"]["prometheus"]["config"]["scrape_configs"]
    assert scrape["job_name"].endswith("task-service")  # The name that the alerts select by.
    assert collector["service"]["pipelines"]["metrics"]["receivers"] == ["prometheus"]
    assert collector["service"]["pipelines"]["traces"]["receivers"] == ["otlp"]
