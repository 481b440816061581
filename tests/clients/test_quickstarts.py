"""The pages of docs/clients, as written: their files and commands, in an empty folder.

`TASK_SERVICE` is this checkout; the address is that of the test's service. The lines below a
command are expected in its output, "…" stands for any text, and "^C" interrupts the command. Any
other command must succeed.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

import pytest

from tests.support.examples import ROOT, require_go, require_npm
from tests.support.service import ServiceProcess

PAGES = ROOT / "docs" / "clients"
TOOLS = ROOT / ".tools" / "bin"
SCREEN_LINES = 45
PATIENCE_SECONDS = 280.0  # For an installation and a build.
BLOCK = re.compile(r'^```(\w+)(?: title="(\S+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
ADDRESS = "127.0.0.1:50051"


# A trap keeps the shell alive when its process group is interrupted; commands have none.
PROLOGUE = "set -e; trap : INT"


class Page(NamedTuple):
    """The commands of a page, with its files written by them, and the lines that they print."""

    script: str
    expected: list[str]
    interrupt_after: int | None
    """The number of lines that are printed before ^C."""


def read_page(name: str, address: str) -> Page:
    """Read a page in the order of its blocks."""
    text = (PAGES / name).read_text().replace(ADDRESS, address)
    script, expected = [PROLOGUE], list[str]()
    for language, title, content in BLOCK.findall(text):
        if title:
            script.append(f"printf %s {shlex.quote(content)} > {title}")
        elif language == "console":
            commands, lines = split(content)
            script += commands
            expected += lines
    interrupt_after = expected.index("^C") if "^C" in expected else None
    return Page("\n".join(script), [line for line in expected if line != "^C"], interrupt_after)


def split(console: str) -> tuple[list[str], list[str]]:
    """Split a console into commands and the lines that they print."""
    commands, printed = list[str](), list[str]()
    previous = ""
    for line in console.splitlines():
        if line.startswith("$ "):
            commands.append(line.removeprefix("$ "))
        elif previous.endswith("\\"):
            commands[-1] += "\n" + line
        elif line != "…":
            printed.append(line)
        if line == "^C":
            commands[-1] += " || true"
        previous = line
    return commands, printed


def missing(expected: list[str], lines: list[str]) -> list[str]:
    """Return the expected lines from the first on that does not follow in the output."""
    printed = iter([words(line) for line in lines])
    for number, line in enumerate(expected):
        pattern = re.escape(words(line)).replace("…", ".*")
        if not any(re.fullmatch(pattern, each) for each in printed):
            return expected[number:]
    return []


def words(line: str) -> str:
    """Return the line with single spaces."""
    return " ".join(line.split())


def follow(page: Page, folder: Path) -> tuple[int, list[str]]:
    """Run the commands, interrupt the one before ^C; return the exit code and what is printed."""
    lines: list[str] = []
    may_interrupt = threading.Event()

    def read(output: IO[str]) -> None:
        for line in output:
            lines.append(line.rstrip())
            if not missing(page.expected[: page.interrupt_after], lines):
                may_interrupt.set()
        may_interrupt.set()

    with subprocess.Popen(
        ["bash", "-c", page.script],
        cwd=folder,
        env=os.environ | {"TASK_SERVICE": str(ROOT), "PATH": f"{os.environ['PATH']}:{TOOLS}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        reader = threading.Thread(target=read, args=[process.stdout])
        reader.start()
        try:
            may_interrupt.wait(PATIENCE_SECONDS)
            if page.interrupt_after is not None:
                os.killpg(process.pid, signal.SIGINT)
            code = process.wait(PATIENCE_SECONDS)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            reader.join()
    return code, lines


# What a page needs, and where it runs if not with all tests.
NEEDS: dict[str, Callable[[], None]] = {
    "go.md": require_go,
    "typescript.md": require_npm,
    "grpcurl.md": lambda: None,
    "python.md": lambda: None,
}
MARKS = {"grpcurl.md": [pytest.mark.deploy]}


@pytest.mark.timeout(2 * PATIENCE_SECONDS)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=MARKS.get(name, ())) for name in sorted(NEEDS)]
)
def test_a_page_works_as_written(name: str, service: ServiceProcess, tmp_path: Path) -> None:
    NEEDS[name]()
    page = read_page(name, f"127.0.0.1:{service.port}")
    code, lines = follow(page, tmp_path)
    assert (code, missing(page.expected, lines)) == (0, []), "\n".join(lines)


def test_every_page_is_tested() -> None:
    assert {page.name for page in PAGES.glob("*.md")} == NEEDS.keys()


@pytest.mark.parametrize("name", sorted(NEEDS))
def test_the_first_call_of_a_page_ends_within_a_screen(name: str) -> None:
    text = (PAGES / name).read_text()
    consoles = [block for block in BLOCK.finditer(text) if block[1] == "console"]
    call = next(block for block in consoles if split(block[3])[1])
    assert text[: call.end()].count("\n") <= SCREEN_LINES
