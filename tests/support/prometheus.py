"""Run a Prometheus process with the rules that ship."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cached_property
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psutil
import yaml

from tests.support.service import wait_until

OBSERVABILITY = Path(__file__).parents[2] / "deploy" / "observability"
RULES = OBSERVABILITY / "rules"

Labels = dict[str, str]


class Prometheus:
    """A running Prometheus that scrapes one target."""

    def __init__(self, program: str, folder: Path, target: str) -> None:
        self._log = folder / "log"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [
                    program,
                    f"--config.file={_with_short_intervals(folder, target)}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    "--web.listen-address=127.0.0.1:0",
                    "--enable-feature=exemplar-storage",
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @cached_property
    def port(self) -> int:
        """The port that it listens on, once it answers there."""
        port = wait_until(self._listening, "Prometheus listens")
        wait_until(lambda: _is_ready(port), "Prometheus is ready")
        return port

    def _listening(self) -> int:
        assert self.process.poll() is None, self._log.read_text()
        connections = psutil.Process(self.process.pid).net_connections("tcp")
        return next((one.laddr.port for one in connections if one.status == psutil.CONN_LISTEN), 0)

    def ask(self, path: str, **parameters: str) -> Any:
        """What its HTTP API answers."""
        with closing(HTTPConnection("127.0.0.1", self.port)) as connection:
            connection.request("GET", f"/api/v1/{path}?{urlencode(parameters)}")
            answer = json.loads(connection.getresponse().read())
        assert answer["status"] == "success", (path, parameters, answer)
        return answer["data"]

    def series(self, selector: str) -> list[Labels]:
        """The series, each by its labels, that it has kept and that the selector finds."""
        found: list[Labels] = self.ask("series", **{"match[]": selector})
        return found

    def query(self, expression: str) -> list[Labels]:
        """The labels of all samples that the expression has now."""
        return [sample["metric"] for sample in self.ask("query", query=expression)["result"]]

    def rules(self) -> list[dict[str, Any]]:
        """All rules, with how their last evaluation went."""
        return [rule for group in self.ask("rules")["groups"] for rule in group["rules"]]

    def clean_up(self) -> None:
        self.process.kill()
        self.process.wait()


def _is_ready(port: int) -> bool:
    """It listens before it has read its data, and says until then that it is unavailable."""
    with closing(HTTPConnection("127.0.0.1", port)) as connection:
        connection.request("GET", "/-/ready")
        return connection.getresponse().status == HTTPStatus.OK


def _with_short_intervals(folder: Path, target: str) -> Path:
    """The configuration that ships, for another target, and with no time between two looks."""
    config = yaml.safe_load((OBSERVABILITY / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
    (folder / "rules").mkdir()
    for path in RULES.glob("*.yml"):
        rules = yaml.safe_load(path.read_text())
        for group in rules["groups"]:
            group["interval"] = "1s"
        (folder / "rules" / path.name).write_text(yaml.safe_dump(rules))
    written = folder / "prometheus.yml"
    written.write_text(yaml.safe_dump(config))
    return written


@contextmanager
def running_prometheus(program: str, folder: Path, target: str) -> Iterator[Prometheus]:
    prometheus = Prometheus(program, folder, target)
    try:
        yield prometheus
    finally:
        prometheus.clean_up()
