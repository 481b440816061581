"""Who tells the metrics of which worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from socket import AF_UNIX, socket
from tempfile import TemporaryDirectory

import pytest

from server.telemetry.scraping import Scraping


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: a socket's name has a hundred characters."""
    with TemporaryDirectory(prefix="tasks-") as folder:
        yield Path(folder)


def workers(scraping: Scraping) -> set[str]:
    """The workers that it tells of."""
    return {sample.labels["worker"] for family in scraping.collect() for sample in family.samples}


def test_a_worker_tells_of_itself_when_the_one_that_followed_it_has_gone(folder: Path) -> None:
    """It serves on: a replacement that died young must not take its metrics away."""
    scraping = Scraping(0, folder)
    scraping.start("127.0.0.1", 0)
    with socket(AF_UNIX) as successor:
        successor.bind(str(folder / "successor"))
    (folder / "successor").rename(folder / "0.socket")
    try:
        assert workers(scraping) == {"0"}
    finally:
        scraping.stop()


def test_a_worker_is_told_of_by_the_others(folder: Path) -> None:
    one, other = Scraping(0, folder), Scraping(1, folder)
    one.start("127.0.0.1", 0)
    other.start("127.0.0.1", 0)
    try:
        assert workers(one) == workers(other) == {"0", "1"}
    finally:
        one.stop()
        other.stop()


def test_a_replacement_takes_over_the_number(folder: Path) -> None:
    old, new = Scraping(0, folder), Scraping(0, folder)
    old.start("127.0.0.1", 0)
    new.start("127.0.0.1", 0)
    try:
        assert [path.name for path in folder.glob("*.socket")] == ["0.socket"]
        assert workers(old) == workers(new) == {"0"}
    finally:
        old.stop()
        new.stop()
