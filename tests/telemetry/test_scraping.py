"""Merge the metrics of all workers."""

from __future__ import annotations

from collections.abc import Iterator
from math import nan
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from prometheus_client import REGISTRY, Counter, Histogram

from server.telemetry.scraping import Scraping
from tests.support.service import PATIENCE_SECONDS


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short path: a socket's name has a hundred characters.

    A worker that does not answer in time is left out of a scrape; here none is.
    """
    monkeypatch.setattr("server.telemetry.scraping._TIMEOUT_SECONDS", PATIENCE_SECONDS)
    with TemporaryDirectory(prefix="tasks-") as folder:
        yield Path(folder)


def workers(scraping: Scraping) -> set[str]:
    """The workers of a scrape."""
    return {sample.labels["worker"] for family in scraping.collect() for sample in family.samples}


def test_a_scrape_has_the_metrics_of_every_worker(folder: Path) -> None:
    one, other = Scraping(0, folder), Scraping(1, folder)
    one.start("127.0.0.1", 0)
    other.start("127.0.0.1", 0)
    try:
        assert workers(one) == workers(other) == {"0", "1"}
    finally:
        one.stop()
        other.stop()


def test_no_scrape_adds_to_the_next(folder: Path) -> None:
    """`python_info`, for one, is the same object at each collection."""
    one, other = Scraping(0, folder), Scraping(1, folder)
    one.start("127.0.0.1", 0)
    other.start("127.0.0.1", 0)
    try:
        first, *others = [
            {family.name: len(family.samples) for family in one.collect()} for _ in range(3)
        ]
        assert others == [first, first]
    finally:
        one.stop()
        other.stop()


def test_a_replacement_takes_over_the_number(folder: Path) -> None:
    old, new, other = Scraping(0, folder), Scraping(0, folder), Scraping(1, folder)
    for scraping in (old, new, other):
        scraping.start("127.0.0.1", 0)
    try:
        assert {path.name for path in folder.glob("*.socket")} == {"0.socket", "1.socket"}
        assert workers(new) == workers(other) == {"0", "1"}
    finally:
        for scraping in (old, new, other):
            scraping.stop()


def test_exemplars_of_another_worker_are_kept(folder: Path) -> None:
    histogram = Histogram("seconds_with_exemplar", "Seconds")
    histogram.observe(1, {"trace_id": "4bf9"})
    one, other = Scraping(0, folder), Scraping(1, folder)
    one.start("127.0.0.1", 0)
    other.start("127.0.0.1", 0)
    try:
        exemplars = {
            sample.labels["worker"]: sample.exemplar.labels
            for family in one.collect()
            for sample in family.samples
            if sample.exemplar and family.name == "seconds_with_exemplar"
        }
        assert exemplars == {"0": {"trace_id": "4bf9"}, "1": {"trace_id": "4bf9"}}
    finally:
        one.stop()
        other.stop()
        REGISTRY.unregister(histogram)


def test_one_invalid_sample_does_not_hide_a_worker(folder: Path) -> None:
    """No parser accepts a counter that is not a number."""
    counter = Counter("not_a_number", "A counter")
    counter.inc(nan)
    one, other = Scraping(0, folder), Scraping(1, folder)
    one.start("127.0.0.1", 0)
    other.start("127.0.0.1", 0)
    try:
        assert workers(one) == {"0", "1"}
    finally:
        one.stop()
        other.stop()
        REGISTRY.unregister(counter)
