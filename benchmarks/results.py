"""Results of a run: the machine, the figures, and how they are kept as JSON."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

from benchmarks.rounds import Figures
from benchmarks.watches import WatchFigures

FOLDER = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Pgbench:
    """The query of GetTask, prepared, sent by pgbench over four connections."""

    calls_per_second: float
    latency_ms: float
    postgres_us: float


@dataclass
class Results:
    """What a run measured, and what it could not."""

    title: str
    machine: dict[str, str]
    figures: list[Figures] = field(default_factory=list)
    pgbench: Pgbench | None = None
    watches: WatchFigures | None = None
    left_out: list[str] = field(default_factory=list)

    def of(
        self, *, service: str = "", workers: int = 0, rows: int = 0, call: str = ""
    ) -> list[Figures]:
        """Return the figures of a service, a number of workers, of rows, a call; or of all."""
        wanted = {"service": service, "workers": workers, "rows": rows, "call": call}
        return [
            figures
            for figures in self.figures
            if all(getattr(figures, name) == value for name, value in wanted.items() if value)
        ]

    def write_json(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")


def this_machine() -> dict[str, str]:
    """Describe the machine and the versions that the figures depend on."""
    packages = ("grpcio", "protobuf", "psycopg2-binary", "SQLAlchemy", "fastapi", "asyncpg")
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "commit": _output("git", "rev-parse", "--short", "HEAD"),
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "kernel": platform.release(),
        "Python": platform.python_version(),
        "Node": _output("node", "--version"),
        **{name: metadata.version(name) for name in packages},
    }


def distinct(values: Iterable[str]) -> list[str]:
    """Return the values without repetitions, in their order."""
    return list(dict.fromkeys(values))


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return "none"


def _processor() -> str:
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.processor()
