"""Each alert leads to a page, and what the page says to run can be run.

What its queries find is in test_scrape.py.
"""

from __future__ import annotations

import pytest

from tests.support import queries
from tests.support.postgres import execute


def test_each_alert_leads_to_a_runbook_of_its_own() -> None:
    for rule in queries.rules():
        if "alert" in rule:
            page = f"/docs/runbooks/{rule['alert']}.md"
            assert rule["annotations"]["runbook_url"].endswith(page)


def test_each_alert_has_a_runbook_and_each_runbook_an_alert() -> None:
    pages = {path.stem for path in queries.RUNBOOKS.glob("*.md")} - {"README"}
    assert pages == queries.alerts()


def test_index_of_runbooks_names_each() -> None:
    index = (queries.RUNBOOKS / "README.md").read_text()
    assert [name for name in queries.alerts() if f"({name}.md)" not in index] == []


@pytest.mark.parametrize("statement", queries.in_runbooks("sql"))
def test_statement_of_a_runbook_runs(own_database_url: str, statement: str) -> None:
    execute(own_database_url, statement)
