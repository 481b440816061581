"""Renew what the chart repeats: the rules of Prometheus, and the values in its README.

Run it by `python -m deploy.helm.renew`.
"""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import yaml

CHART = Path(__file__).parent / "task-service"
README = CHART / "README.md"
RULES = Path(__file__).parents[1] / "observability" / "rules"
_HEADING = "## Values\n"
_KEY = re.compile(r"( *)(\w+):")
_COMMENT = re.compile(r" *# (.*)")


def text() -> str:
    """Return the README with the table of the current values."""
    head = README.read_text().partition(_HEADING)[0]
    table = "".join(_rows())
    return f"{head}{_HEADING}\n| value | default | meaning |\n|---|---|---|\n{table}"


def _rows() -> Iterator[str]:
    """Yield a row for each value that has a comment, or that holds no further values."""
    lines = (CHART / "values.yaml").read_text().splitlines()
    values = yaml.safe_load("\n".join(lines))
    path: list[str] = []
    comment: list[str] = []
    for line in lines:
        if words := _COMMENT.fullmatch(line):
            comment.append(words[1])
        elif key := _KEY.match(line):
            path = [*path[: len(key[1]) // 2], key[2]]
            default = _at(values, path)
            is_group = line.endswith(":") and isinstance(default, dict)
            if default is not None and (comment or not is_group):
                yield _row(path, "" if is_group else f"`{_shown(default)}`", " ".join(comment))
            comment = []


def _at(values: object, path: list[str]) -> object:
    """Return the value of a path; "null" for null, None for a path within a list."""
    for name in path:
        if not isinstance(values, dict) or name not in values:
            return None
        values = "null" if values[name] is None else values[name]
    return values


def _shown(default: object) -> str:
    return "null" if default == "null" else json.dumps(default)


def _row(path: list[str], default: str, meaning: str) -> str:
    return f"| `{'.'.join(path)}` | {default} | {meaning} |\n"


if __name__ == "__main__":
    README.write_text(text())
    for file in RULES.glob("*.yml"):
        shutil.copy(file, CHART / "rules")
