"""Fail if GetTask executes more instructions, against an empty method, than is committed.

Valgrind counts instructions: other work on the machine does not change them, and the ratio changes
little from one machine to another.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.calls import EMPTY, GET, get_call, token
from benchmarks.database import BenchDatabase
from benchmarks.load import send_load
from benchmarks.plans import filled
from benchmarks.results import FOLDER
from benchmarks.subjects import RunningSubject, Subject, empty_method, running_subject, service_on

_FIGURE = FOLDER / "guard.json"
_ALLOWED = 1.15
_ROWS = 1_000
_CALLS = 100
_ROUNDS = 3
_TOTALS = re.compile(r"^totals: (\d+)", re.MULTILINE)


def check() -> None:
    """Compare with the committed ratio. Raises: SystemExit."""
    committed = float(json.loads(_FIGURE.read_text())["ratio"])
    ratio = _measure()["ratio"]
    print(f"Instructions of GetTask against an empty method: {ratio}; committed: {committed}.")
    if ratio > committed * _ALLOWED:
        raise SystemExit(
            f"That is more than {_ALLOWED - 1:.0%} above. If intended: make bench-guard RENEW=yes"
        )


def renew() -> None:
    """Write the figure anew."""
    figures = _measure()
    _FIGURE.write_text(json.dumps(figures, indent=1) + "\n")
    print(f"Written to {_FIGURE.name}: {figures}")


def _measure() -> dict[str, float]:
    if shutil.which("valgrind") is None:
        raise SystemExit("valgrind is needed: apt-get install valgrind")
    get = replace(service_on(), calls=partial(get_call, bearer=token()))
    with filled(_ROWS) as database, ThreadPoolExecutor(2) as both:
        of_empty, of_get = both.map(partial(_instructions, database), [empty_method(), get])
    return {EMPTY: of_empty, GET: of_get, "ratio": round(of_get / of_empty, 3)}


def _instructions(database: BenchDatabase, subject: Subject) -> int:
    """Count the instructions of a call: the least of several rounds."""
    with TemporaryDirectory() as folder:
        counts = Path(folder) / "counts"
        # Not counted until the service has started: valgrind is slow.
        valgrind = ("valgrind", "--quiet", "--tool=callgrind", "--instr-atstart=no")
        command = (*valgrind, f"--callgrind-out-file={counts}", *subject.command)
        with running_subject(replace(subject, command=command), database) as service:
            (requests,) = service.calls.values()
            load = partial(send_load, service.address, requests, connections=1, calls=_CALLS)
            load()
            _control(service, "--instr=on")
            for _ in range(_ROUNDS + 1):
                load()
                _control(service, "--dump")
        # The first part has the instructions of the first calls, which fill caches.
        parts = [counts.with_suffix(f".{number + 2}") for number in range(_ROUNDS)]
        return min(_total(part) for part in parts) // _CALLS


def _control(service: RunningSubject, option: str) -> None:
    (pid,) = service.processes.pids
    command = ["callgrind_control", option, str(pid)]
    subprocess.run(command, check=True, capture_output=True)


def _total(part: Path) -> int:
    found = _TOTALS.search(part.read_text())
    if found is None:
        raise ValueError(f"{part} has no totals")
    return int(found[1])
