"""Open pages in Debian's Chromium, and record what a page must not do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.support.programs import debian_program
from tests.support.service import PATIENCE_SECONDS

expect.set_options(timeout=PATIENCE_SECONDS * 1000)


@contextmanager
def chromium() -> Iterator[Browser]:
    program = debian_program("chromium", "chromium")
    with sync_playwright() as playwright:
        # Its sandbox refuses to run as root, as tests do in a container.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


class Faults(list[str]):
    """What a page did wrong: its errors, violations of its policy, requests to elsewhere."""

    def watch(self, page: Page, origin: str) -> None:
        page.on("pageerror", lambda error: self.append(f"error: {error}"))
        page.on(
            "console",
            lambda message: (
                self.append(f"{message.type}: {message.text}")
                if message.type in {"error", "warning"}
                else None
            ),
        )
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith((f"{origin}/", "data:", f"blob:{origin}/"))
                else self.append(f"request: {request.url}")
            ),
        )


def new_page(
    browser: Browser,
    *,
    width: int = 1280,
    height: int = 900,
    scheme: Literal["light", "dark"] = "light",
) -> Page:
    page = browser.new_page(
        viewport={"width": width, "height": height}, color_scheme=scheme, locale="en-GB"
    )
    page.set_default_timeout(PATIENCE_SECONDS * 1000)
    return page


def accessibility_violations(page: Page) -> list[str]:
    """Return the rules of axe-core that a page breaks, with the elements."""
    violations = Axe().run(page).response["violations"]
    return [f"{rule['id']}: {[node['target'] for node in rule['nodes']]}" for rule in violations]
