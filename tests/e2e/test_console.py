"""The development console escapes control sequences in what a client sends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import CreateTaskRequest
from tests.support.http2 import RawConnection, call_headers
from tests.support.service import ServiceProcess, environment

# Colours, the title of the window, a line of its own, C1's one-byte CSI, what reverses the text.
HOSTILE = "\x1b[31m\x1b]0;owned\x07\r\nforged\x7f\x9b31m\u202e"
SHOWN = r"\x1b[31m\x1b]0;owned\x07\r\nforged\x7f\x9b31m\u202e"

# Logs what its first argument says, by our logger and by a library's.
LOGGING = """
import logging
import sys

import structlog

from server.telemetry import logs
from server.settings import Settings

logs.configure(Settings.load())
hostile = sys.argv[1].encode().decode("unicode_escape")


class Odd:
    def __repr__(self) -> str:
        return hostile


def fail() -> None:
    raise ValueError(hostile)


structlog.get_logger().info("ours", text=hostile, odd=Odd(), listed=[hostile])
structlog.get_logger().info(hostile)
logging.getLogger("library").warning("theirs %s", hostile)
for log in (structlog.get_logger(), logging.getLogger("library")):
    try:
        fail()
    except ValueError:
        log.exception("failed")
"""


@pytest.mark.parametrize("character", ["\x1b[31m", "\x07", "\x7f", "\u009b31m"], ids=ascii)
def test_the_name_of_a_method_is_shown_and_not_obeyed(
    start_service: Callable[..., ServiceProcess], own_database_url: str, character: str
) -> None:
    service = start_service(ENVIRONMENT="development", DATABASE_URL=own_database_url)
    with RawConnection(service.port) as connection:
        connection.send(call_headers(1, f"Get{character}Task"))
        service.await_log("UNIMPLEMENTED")
    (line,) = [line for line in service.lines if "UNIMPLEMENTED" in line]
    assert line.rstrip("\n").isprintable()
    assert ascii(character)[1:3] in line


def test_a_line_of_the_console_is_of_one_event(tmp_path: Path) -> None:
    """Of ours and of a library's; an exception's text has its own lines, and nothing else raw."""
    argument = HOSTILE.encode("unicode_escape").decode()
    done = subprocess.run(
        [sys.executable, "-c", LOGGING, argument],
        env=environment(tmp_path, {"ENVIRONMENT": "development"}),
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.split("\n")
    assert done.stderr == ""
    assert all(line.isprintable() for line in lines)
    forged = [line for line in lines if line.startswith("forged")]
    assert forged == [r"forged\x7f\x9b31m\u202e"] * 2  # The second lines of two exceptions.
    assert any("ours" in line and SHOWN in line for line in lines)
    assert any("theirs" in line and SHOWN in line for line in lines)


def test_text_is_shown_as_it_is(
    start_service: Callable[..., ServiceProcess], own_database_url: str
) -> None:
    service = start_service(ENVIRONMENT="development", DATABASE_URL=own_database_url)
    service.stub().CreateTask(
        CreateTaskRequest(task=Task(title="a")), metadata=(("x-request-id", "a-[31m-request"),)
    )
    service.await_log("request_id=a-[31m-request")
