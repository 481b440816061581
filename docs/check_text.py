"""Check the words, names, links and quoted code of the project's text: run by `make lint`."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXCLUDED = ("generated/", "docs/check_text.py", "requirements", "LICENSE")
BANNED = re.compile(
    r"|".join(
        [
            r"\b(?:he|his|him|himself|whoever|whomever|somebody|nobody|anybody)\b",
            r"nothing of a call is looked at",
            r"\bin its turn\b",
            r"(?:for|by) (?:somebody|someone) who is gone",
            r"fills the room",
            r"wanting to know more",
            r"who hangs up",
            r"heard enough",
            r"has nothing to say on",
            r"\bis asked\.$",
            r"for want of room",
            r"helps nobody",
        ]
    ),
    re.IGNORECASE,
)
BANNED_NAMES = {"_mourn", "Place", "Look", "Pace", "_Hurried", "tell_origin", "is_one"}
BANNED_NAMES |= {"it", "within"}
MAX_TEST_NAME = 70
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
NAMED_TEST = re.compile(r"\b(tests/[\w/]+\.py)::(\w+)")
EXCERPT = re.compile(
    r"^`([\w/.-]+\.(?:py|proto|lark))`:\n\n```\w+\n(.*?)^```", re.MULTILINE | re.DOTALL
)


def tracked_files() -> list[str]:
    """List the tracked files to check."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],  # noqa: S607
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    names = (name for name in listing.split("\0") if name and not name.startswith(EXCLUDED))
    return sorted(name for name in names if (ROOT / name).is_file())


def banned_words(name: str, text: str) -> Iterator[str]:
    """Find words that name a person for a program, and phrases that are no plain English."""
    for number, line in enumerate(text.splitlines(), start=1):
        for match in BANNED.finditer(line):
            yield f"{name}:{number}: {match.group()}"


def banned_names(name: str, text: str) -> Iterator[str]:
    """Find names in code that are no technical noun, and names of tests that are too long."""
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.ClassDef(name=found) | ast.FunctionDef(name=found):
                pass
            case ast.arg(arg=found) | ast.Name(id=found) | ast.Attribute(attr=found):
                pass
            case _:
                continue
        too_long = found.startswith("test_") and len(found) > MAX_TEST_NAME
        if found in BANNED_NAMES or too_long:
            yield f"{name}:{node.lineno}: {found}"


def broken_links(name: str, text: str) -> Iterator[str]:
    """Find relative links of a page that lead to no file."""
    for match in LINK.finditer(text):
        target = match.group(1)
        if "://" not in target and not ((ROOT / name).parent / target).exists():
            yield f"{name}:{_line(text, match.start())}: no such file: {target}"


def stale_excerpts(name: str, text: str) -> Iterator[str]:
    """Find quoted lines of code that the file they are quoted from does not have."""
    for match in EXCERPT.finditer(text):
        source = ROOT / match.group(1)
        lines = (
            {_code(line) for line in source.read_text().splitlines()} if source.exists() else {""}
        )
        for line in match.group(2).splitlines():
            if (code := _code(line)) and code != "…" and code not in lines:
                yield f"{name}:{_line(text, match.start())}: not in {match.group(1)}: {code}"


def missing_tests(name: str, text: str) -> Iterator[str]:
    """Find tests that a page names, `tests/file.py::test_name`, and that there are not."""
    for match in NAMED_TEST.finditer(text):
        path = ROOT / match.group(1)
        if not path.exists() or f"\ndef {match.group(2)}(" not in path.read_text():
            yield f"{name}:{_line(text, match.start())}: no such test: {match.group()}"


def unreachable_pages(pages: dict[str, str]) -> Iterator[str]:
    """Find pages of docs/ to which no path of links leads from docs/README.md."""
    reached, waiting = {"docs/README.md"}, ["docs/README.md"]
    while waiting:
        page = waiting.pop()
        for target in LINK.findall(pages.get(page, "")):
            path = ((ROOT / page).parent / target).resolve()
            linked = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else ""
            if linked in pages and linked not in reached:
                reached.add(linked)
                waiting.append(linked)
    for page in pages:
        if page.startswith("docs/") and page not in reached:
            yield f"{page}: not reachable from docs/README.md"


def undocumented_settings(page: str) -> Iterator[str]:
    """Find settings that only one of docs/configuration.md and .env.example has."""
    cells = re.findall(r"^\| (`[^|]*) \|", page, re.MULTILINE)
    documented = set(re.findall(r"`([A-Z_]+)`", " ".join(cells)))
    listed = set(re.findall(r"^([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    for name in sorted(documented ^ listed):
        missing = "docs/configuration.md" if name in listed else ".env.example"
        yield f"{missing}: no setting {name}"


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _code(line: str) -> str:
    """Strip a line of its indentation and of the comment that annotates it."""
    return re.sub(r"(?:^|\s+)#.*$", "", line).strip()


def findings() -> Iterator[str]:
    """Yield every finding of every check, as file:line: what is wrong."""
    pages: dict[str, str] = {}
    for name in tracked_files():
        try:
            text = (ROOT / name).read_text()
        except UnicodeDecodeError:
            continue
        yield from banned_words(name, text)
        if name.endswith(".py"):
            yield from banned_names(name, text)
        if name.endswith(".md"):
            pages[name] = text
            yield from broken_links(name, text)
            yield from stale_excerpts(name, text)
            yield from missing_tests(name, text)
    yield from unreachable_pages(pages)
    yield from undocumented_settings(pages["docs/configuration.md"])


if __name__ == "__main__":
    found = list(findings())
    sys.stderr.writelines(f"{finding}\n" for finding in found)
    sys.exit(1 if found else 0)
