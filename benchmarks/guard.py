"""Fail if GetTask costs more of an empty method's CPU than the committed figure allows.

A ratio of two minimums depends little on the machine, and on other work, which only adds.
"""

from __future__ import annotations

import json

from benchmarks.calls import EMPTY, GET
from benchmarks.plans import filled
from benchmarks.results import FOLDER
from benchmarks.rounds import measure
from benchmarks.subjects import empty_method, service_on

_FIGURE = FOLDER / "guard.json"
_ALLOWED = 1.15
_ROWS = 1_000
_ROUNDS = 6
_SECONDS = 1.0


def check() -> None:
    """Compare with the committed figure. Raises: SystemExit."""
    committed = float(json.loads(_FIGURE.read_text())["ratio"])
    ratio = _measure()
    print(f"GetTask costs {ratio:.2f} times an empty method; {committed:.2f} is committed.")
    if ratio > committed * _ALLOWED:
        raise SystemExit(
            f"GetTask became more than {_ALLOWED - 1:.0%} more expensive. If that is meant: "
            "make bench-guard RENEW=yes"
        )


def renew() -> None:
    """Write the figure anew."""
    ratio = round(_measure(), 3)
    _FIGURE.write_text(json.dumps({"call": GET, "reference": EMPTY, "ratio": ratio}) + "\n")
    print(f"GetTask costs {ratio:.2f} times an empty method: written to {_FIGURE.name}.")


def _measure() -> float:
    with filled(_ROWS) as database:
        empty, get = measure(
            [empty_method(), service_on()],
            database,
            rows=_ROWS,
            rounds=_ROUNDS,
            seconds=_SECONDS,
            only=[GET],
        )
    return get.service_us.least / empty.service_us.least
