"""The form of a log line, and which lines are written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

BEGIN = """
import logging, signal
import structlog
from server.telemetry import logs
from server.settings import Settings

logs.configure(Settings.load())
log = structlog.get_logger()
"""


def written(script: str, **settings: str) -> str:
    """Return the lines of a process of its own: logging is set up once in a process."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", BEGIN + script],
        cwd=Path(__file__).parent,  # Not where a .env might be.
        env={
            **os.environ,
            "ENVIRONMENT": "staging",
            "AUTH_MODE": "none",
            "SECRET_KEY": "s" * 32,
            "DB_HOST": "h",
        }
        | settings,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout


def lines(script: str, **settings: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in written(script, **settings).splitlines()]


def messages(script: str, **settings: str) -> list[str]:
    return [line["message"] for line in lines(script, **settings)]


def test_a_line_is_a_json_object() -> None:
    (line,) = lines("log.info('happened', answer=42)")
    assert (line["message"], line["level"], line["answer"]) == ("happened", "info", 42)
    assert line["timestamp"].endswith("Z")
    assert line.keys() == {"message", "level", "answer", "timestamp"}


def test_lines_of_libraries_have_the_form_of_ours() -> None:
    (line,) = lines("logging.getLogger('a.library').warning('beware of the %s', 'dog')")
    assert (line["message"], line["level"]) == ("beware of the dog", "warning")
    assert line.keys() == {"message", "level", "timestamp"}


def test_a_line_within_a_span_leads_to_it() -> None:
    (inside, outside) = lines("""
from opentelemetry import trace
context = trace.SpanContext(0xabc, 0xdef, False)
with trace.use_span(trace.NonRecordingSpan(context)):
    log.info('inside')
log.info('outside')
""")
    assert (inside["trace_id"], inside["span_id"]) == (f"{0xABC:032x}", f"{0xDEF:016x}")
    assert outside.keys().isdisjoint({"trace_id", "span_id"})


def test_an_exception_is_part_of_its_line() -> None:
    (line,) = lines("""
try:
    1 / 0
except ZeroDivisionError:
    log.exception('failed')
""")
    assert line["level"] == "error"
    assert line["exception"].endswith("ZeroDivisionError: division by zero")


def test_development_gets_plain_lines_that_show_no_variables() -> None:
    output = written(
        """
def fail(title):
    raise ValueError('of course')
try:
    fail('a marker' + ' of mine')
except ValueError:
    log.exception('failed', answer=42)
""",
        ENVIRONMENT="development",
    )
    assert "failed" in output
    assert "answer=42" in output
    assert "ValueError: of course" in output
    assert "a marker of mine" not in output


EACH_LEVEL = """
for level in ('debug', 'info', 'warning', 'error', 'critical'):
    getattr(log, level)(level)
"""


def test_the_level_says_which_lines_are_written() -> None:
    assert messages(EACH_LEVEL, LOG_LEVEL="WARNING") == ["warning", "error", "critical"]
    assert messages(EACH_LEVEL, DEBUG="true", LOG_LEVEL="ERROR")[0] == "error"
    assert messages(EACH_LEVEL, DEBUG="true")[0] == "debug"


def test_signals_move_the_level_by_one_and_not_beyond_the_last() -> None:
    """At ERROR the change itself is not logged."""
    told = lines("""
for number in [signal.SIGUSR1] * 3 + [signal.SIGUSR2] * 9 + [signal.SIGUSR1]:
    logs.change_level(number)
""")
    levels = ["DEBUG", "DEBUG", "DEBUG", "INFO", "WARNING", "WARNING"]
    assert [line["to"] for line in told] == levels


def test_the_level_holds_for_libraries_whose_details_are_never_logged() -> None:
    script = """
library = logging.getLogger('a.library')
library.debug('before'); library.info('before')
logs.change_level(signal.SIGUSR1)
library.debug('verbose'); library.info('verbose')
for _ in range(2): logs.change_level(signal.SIGUSR2)
library.info('silent'); library.warning('silent')
"""
    told = [m for m in messages(script) if m != "log level changed"]
    assert told == ["before", "verbose", "silent"]


SELDOM = """
now = 1000.0
logs.time.monotonic = lambda: now
exporter = logging.getLogger('opentelemetry.exporter')
def again(times):
    for _ in range(times):
        exporter.error('no %s', 'collector')
"""


def test_opentelemetry_gets_a_line_a_minute_that_counts_those_left_out() -> None:
    told = messages(
        SELDOM + "again(3); now += 59; again(2); now += 2; again(3); now += 61; again(1)"
    )
    assert told == [
        "no collector",
        "no collector (4 such lines were omitted)",
        "no collector (2 such lines were omitted)",
    ]


def test_all_parts_of_opentelemetry_and_nothing_else_share_that_line() -> None:
    told = messages(
        SELDOM
        + """
again(1)
logging.getLogger('opentelemetry.sdk').warning('queue full')
logging.getLogger('opentelemetrist').warning('another')
logging.getLogger('a.library').warning('another')
log.warning('ours')
"""
    )
    assert told == ["no collector", "another", "another", "ours"]


def test_the_tracestate_of_callers_is_not_logged() -> None:
    assert (
        messages("""
from opentelemetry.trace import TraceState
TraceState.from_header(['a marker of mine'])
""")
        == []
    )


def test_a_log_that_cannot_be_written_is_no_error() -> None:
    """The code that logs is serving a call, which must end well."""
    assert (
        written("""
import os
os.close(1)
log.info('lost'); logging.getLogger('a.library').warning('lost')
os._exit(0)
""")
        == ""
    )


def test_lines_of_calls_keep_their_order_among_others() -> None:
    script = """
logs.write_call("info", {"method": "first"})
log.info("second")
logs.write_call("info", {"method": "third"})
"""
    found = [line.get("method", line["message"]) for line in lines(script)]
    assert found == ["first", "second", "third"]


def test_lines_of_two_workers_are_not_torn_apart() -> None:
    """They share a pipe, which keeps together what one system call writes."""
    script = """
import os
child = os.fork()
for number in range(3000):
    logs.write_call("info", {"method": f"{number} " + "é" * (number % 500)})
if child:
    os.waitpid(child, 0)
"""
    assert len(lines(script)) == 6000
