"""Read the metrics port as Prometheus does."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPConnection

from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests.support.service import PATIENCE_SECONDS, ServiceProcess, wait_until

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


class Scrape:
    """What one scrape says. Raises ValueError for what is not OpenMetrics."""

    def __init__(self, text: str) -> None:
        self.families: dict[str, Metric] = {
            family.name: family
            for family in text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
        }

    def samples(self, name: str, **labels: str) -> list[Sample]:
        """The samples of this name that have these labels, and maybe others."""
        return [
            sample
            for family in self.families.values()
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]

    def value(self, name: str, **labels: str) -> float:
        """The sum of these samples, over all workers; 0 when there are none."""
        return sum(sample.value for sample in self.samples(name, **labels))

    def values(self, name: str) -> set[float]:
        return {sample.value for sample in self.samples(name)}

    def workers(self) -> set[str]:
        return {sample.labels["worker"] for sample in self.samples("taskservice_ready")}


def fetch(service: ServiceProcess, accept: str = OPENMETRICS) -> tuple[str, str]:
    """The content type and the text that METRICS_PORT answers. Raises: OSError."""
    service.await_log('"serving"')
    port = next(event["metrics"] for event in service.events("serving"))
    connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
    try:
        connection.request("GET", "/metrics", headers={"Accept": accept})
        answer = connection.getresponse()
        return answer.headers["Content-Type"], answer.read().decode()
    finally:
        connection.close()


def scrape(service: ServiceProcess) -> Scrape:
    return Scrape(fetch(service)[1])


def await_scrape(service: ServiceProcess, condition: Callable[[Scrape], object], what: str) -> None:
    """Scrape again after the port rejected a scrape, as Prometheus does."""

    def fulfilled() -> object:
        with suppress(ConnectionError):
            return condition(scrape(service))
        return False

    wait_until(fulfilled, what)
