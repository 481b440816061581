"""Write taskservice_client/_sync from _async; with --check, fail if it is not what _async gives."""

from __future__ import annotations

import re
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent / "taskservice_client"
GENERATED = "batches.py", "calls.py", "client.py", "health.py", "watch.py"

_NOTE = "# Generated from _async/{name} by `make client`.\n"
_REPLACEMENTS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\basync (def|for|with)\b", r"\1"),
        (r"\bawait ", ""),
        (r"\b__a(enter|exit|iter|next)__\b", r"__\1__"),
        (r"\bAsync([A-Z]\w*)", r"\1"),
        (r"\b_async\b", "_sync"),
    )
]


def synchronous(name: str) -> str:
    """Return the synchronous form of a module."""
    text = (PACKAGE / "_async" / name).read_text()
    for pattern, replacement in _REPLACEMENTS:
        text = pattern.sub(replacement, text)
    return _NOTE.format(name=name) + text


def main() -> None:
    for name in GENERATED:
        target = PACKAGE / "_sync" / name
        if "--check" not in sys.argv:
            target.write_text(synchronous(name))
        elif target.read_text() != synchronous(name):
            sys.exit(f"{target.name} is not what _async gives: run `make client`")


if __name__ == "__main__":
    main()
