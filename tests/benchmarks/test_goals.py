"""The goals of a run are ratios of its figures."""

from __future__ import annotations

from pathlib import Path

from benchmarks.calls import CREATE, DEEP, FIRST, GET
from benchmarks.goals import ROWS, goals
from benchmarks.report import write_markdown
from benchmarks.results import Results
from benchmarks.rounds import Figures, Spread
from benchmarks.subjects import FASTAPI, ON


def figures(service: str, call: str, *, rate: float = 100, ratio: float = 1) -> Figures:
    one = Spread(1, 1, 1)
    return Figures(
        service=service,
        workers=1,
        rows=ROWS,
        call=call,
        calls_per_second=Spread(rate, rate, rate),
        p50_ms=one,
        p99_ms=Spread(3, 3, 3),
        service_us=one,
        postgres_us=one,
        ratio_to_empty=Spread(ratio, ratio, ratio),
        statements=1,
        idle_megabytes=70,
        loaded_megabytes=75,
    )


def reached(*found: Figures) -> dict[str, tuple[float, bool]]:
    results = Results("a run", {}, list(found))
    return {goal.name: (goal.value, goal.is_reached) for goal in goals(results)}


def test_cost_is_compared_with_the_empty_method() -> None:
    assert reached(figures(ON, CREATE, ratio=2.5)) == {
        "CreateTask, on: CPU against the empty method": (2.5, False)
    }


def test_throughput_is_compared_with_the_same_number_of_workers() -> None:
    found = reached(figures(ON, CREATE, rate=600), figures(FASTAPI, CREATE, rate=100))

    assert found["CreateTask, one worker: throughput against FastAPI"] == (6, True)


def test_page_is_compared_with_the_first_page_of_its_order() -> None:
    found = reached(figures(ON, f"due_date, {FIRST}"), figures(ON, f"due_date, {DEEP}"))

    assert found == {"Lists by due_date, page 10,000 against page 1: p50": (1, True)}


def test_goals_without_figures_are_left_out() -> None:
    assert reached() == {}


def test_report_shows_each_call_and_goal(tmp_path: Path) -> None:
    results = Results("A run", {"cores": "2"}, [figures(ON, GET, ratio=1.5)])

    write_markdown(results, tmp_path / "run.md")

    page = (tmp_path / "run.md").read_text()
    assert "| GetTask, on: CPU against the empty method | 1.50 | ≤ 1.6 | yes |" in page
    assert "| Task Service, on | GetTask | 100 (100-100) |" in page
