"""Run a function at an interval on a thread."""

from __future__ import annotations

from queue import Queue

from structlog.testing import capture_logs

from server.periodic import Periodic
from tests.support.service import PATIENCE_SECONDS, wait_until


def test_a_function_runs_again_and_again_until_it_is_stopped() -> None:
    runs: Queue[None] = Queue()
    periodic = Periodic("test", lambda: runs.put(None), 0.001)
    periodic.start()
    for _ in range(3):
        runs.get(timeout=PATIENCE_SECONDS)
    periodic.stop()
    assert periodic.is_stopped


def test_an_exception_is_logged_and_the_next_run_follows() -> None:
    runs: Queue[None] = Queue()

    def fail() -> None:
        runs.put(None)
        raise ValueError("no luck")

    with capture_logs() as logs:
        periodic = Periodic("test", fail, 0.001)
        periodic.start()
        for _ in range(2):
            runs.get(timeout=PATIENCE_SECONDS)
        periodic.stop()
    assert logs[0]["event"] == "test failed"
    assert logs[0]["why"] == "no luck"


def test_a_function_may_ask_for_an_earlier_next_run() -> None:
    """The interval alone would be longer than the test waits."""
    runs: Queue[None] = Queue()

    def run() -> float:
        runs.put(None)
        return 0.001

    periodic = Periodic("test", run, 10 * PATIENCE_SECONDS)
    periodic.start()
    wait_until(lambda: runs.qsize() > 1, "it runs twice")
    periodic.stop()
