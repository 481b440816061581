"""Compute what calls cost from the measured CPU and list prices: the tables of docs/cost.md.

`python -m benchmarks.cost` writes them anew, after a run of `make bench` or a change of prices.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.calls import CREATE, GET, LIST, STATS
from benchmarks.goals import ROWS
from benchmarks.results import FOLDER
from benchmarks.subjects import FASTAPI, ON

PAGE = Path(__file__).parents[1] / "docs" / "cost.md"
BEGIN, END = "<!-- tables of benchmarks/cost.py -->\n", "<!-- end of the tables -->\n"

# On-demand list prices of AWS in us-east-1, Linux and RDS for PostgreSQL, dollars an hour. Entered
# by hand on 2026-11-27 without access to the price list: to be checked before they are relied on.
SERVICE_PRICES = {
    "m7g.large": 0.0816,
    "c7g.large": 0.0725,
    "m7i.large": 0.1008,
    "c7i.large": 0.0893,
}
DATABASE_PRICES = {"db.m7g.large": 0.168, "db.m7g.large, Multi-AZ": 0.336}
VCPUS = 2  # Of each of these.

UTILISATION = 0.5
HOURS = 730
CALLS = (GET, LIST, CREATE, STATS)
MIX = dict(zip(CALLS, (0.7, 0.15, 0.1, 0.05), strict=True))
NAMES = {ON: "Task Service", FASTAPI: "FastAPI"}


class Cpu(NamedTuple):
    """The CPU time of a call, in microseconds."""

    service: float
    database: float


Measured = dict[tuple[str, str], Cpu]


def measured() -> Measured:
    """Return the CPU of each service and call, with one worker."""
    figures = json.loads((FOLDER / "full.json").read_text())["figures"]
    return {
        (one["service"], one["call"]): Cpu(
            *(one[f]["median"] for f in ("service_us", "postgres_us"))
        )
        for one in figures
        if (one["rows"], one["workers"]) == (ROWS, 1)
    }


def dollars_per_million(cpu: Cpu, service: float, database: float) -> float:
    """Return the price of a million calls, at two prices of an instance for an hour."""
    busy = cpu.service * service + cpu.database * database
    return busy / 3600 / VCPUS / UTILISATION


def tables(cpu: Measured) -> str:
    """Return the tables in Markdown."""
    return "\n\n".join(
        f"**{title}**\n\n" + "\n".join(_lines(rows))
        for title, rows in (
            ("Calls per vCPU", _calls_per_vcpu(cpu)),
            ("Prices of an hour, in dollars", _prices()),
            (f"Dollars per million calls, at {UTILISATION:.0%} utilisation", _dollars(cpu)),
            ("Instances, and dollars a month", _months(cpu)),
        )
    )


def _calls_per_vcpu(cpu: Measured) -> Iterator[Sequence[object]]:
    yield "call", *(f"{name}, {of}" for name in NAMES.values() for of in ("service", "PostgreSQL"))
    for call in CALLS:
        times = (time for name in NAMES for time in cpu[name, call])
        yield call, *(f"{time:,.0f} µs, {1e6 / time:,.0f}/s" for time in times)


def _prices() -> Iterator[Sequence[object]]:
    yield "instance", "list price, to be checked"
    yield from {**SERVICE_PRICES, **DATABASE_PRICES}.items()


def _dollars(cpu: Measured) -> Iterator[Sequence[object]]:
    yield "service", "database", *(f"{call}: {' / '.join(NAMES.values())}" for call in CALLS)
    for database, database_price in DATABASE_PRICES.items():
        for service, price in SERVICE_PRICES.items():
            pairs = (
                [dollars_per_million(cpu[name, call], price, database_price) for name in NAMES]
                for call in CALLS
            )
            yield service, database, *(f"{ours:.3f} / {theirs:.3f}" for ours, theirs in pairs)


def _months(cpu: Measured) -> Iterator[Sequence[object]]:
    yield "calls/s", *(f"{name}: m7g.large + vCPUs of the database, $" for name in NAMES.values())
    for rate in (10, 100, 1000):
        yield f"{rate:,}", *(_month(cpu, name, rate) for name in NAMES)


def _month(cpu: Measured, name: str, rate: int) -> str:
    """Size both tiers: one instance more than needed, and a database of a power of two vCPUs."""
    service, database = (
        sum(share * cpu[name, call][tier] for call, share in MIX.items()) * rate / 1e6 / UTILISATION
        for tier in range(2)
    )
    instances = math.ceil(service / VCPUS) + 1
    vcpus = max(VCPUS, 2 ** math.ceil(math.log2(database)))
    database_price = DATABASE_PRICES["db.m7g.large, Multi-AZ"] * vcpus / VCPUS
    dollars = HOURS * (instances * SERVICE_PRICES["m7g.large"] + database_price)
    return f"{instances} + {vcpus}, {dollars:,.0f}"


def _lines(rows: Iterator[Sequence[object]]) -> Iterator[str]:
    header = next(rows)
    for row in (header, ["---", *["---:"] * (len(header) - 1)], *rows):
        yield f"| {' | '.join(map(str, row))} |"


if __name__ == "__main__":
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}{tables(measured())}\n{END}{rest.partition(END)[2]}")
