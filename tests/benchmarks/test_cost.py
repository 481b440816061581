"""The tables of docs/cost.md follow from the committed results and prices."""

from __future__ import annotations

import pytest

from benchmarks.cost import PAGE, Cpu, dollars_per_million, measured, tables


def test_the_page_has_the_tables_of_the_results() -> None:
    """`python -m benchmarks.cost` writes them."""
    assert tables(measured()) in PAGE.read_text()


def test_a_million_calls_cost_their_share_of_both_instances() -> None:
    """Of 1,000 s of the service and 500 s of the database, on half-used instances of two vCPUs."""
    cost = dollars_per_million(Cpu(1000, 500), service=3.6, database=7.2)
    assert cost == pytest.approx(1000 / 3600 * 3.6 + 500 / 3600 * 7.2)
