"""Check a built site: links lead to files and anchors of it, and nothing is loaded from outside."""

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What a page links to, loads, and has anchors for."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            if name in {"href", "src"} and value:
                (self.links if tag == "a" else self.loaded).append(value)


def broken(page: Page, pages: dict[Path, Page], root: Path) -> Iterator[str]:
    """Find links of a page that lead nowhere, and what it loads from other hosts."""
    for link in page.links + page.loaded:
        url = urlsplit(link)
        if url.scheme or url.netloc:
            if link in page.loaded:
                yield f"loaded from outside: {link}"
            continue
        base = root if url.path.startswith("/") else page.path.parent
        target = (base / unquote(url.path).lstrip("/")).resolve() if url.path else page.path
        if not target.is_file():
            yield f"no such file: {link}"
        elif target in pages and url.fragment and url.fragment not in pages[target].anchors:
            yield f"no such anchor: {link}"


def main(root: Path) -> int:
    """Report what is broken; return the exit code."""
    pages = {path: Page(path) for path in sorted(root.rglob("*.html"))}
    found = [
        f"{path.relative_to(root)}: {what}"
        for path, page in pages.items()
        for what in broken(page, pages, root)
    ]
    sys.stderr.writelines(f"{line}\n" for line in found)
    return 1 if found or not pages else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
