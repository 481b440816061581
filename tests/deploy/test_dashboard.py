"""The dashboard as a file; what its queries find is in test_scrape.py."""

from __future__ import annotations

import json

from deploy.observability import dashboard


def test_file_is_what_the_script_writes() -> None:
    """The next run of the script would undo a manual change of the file."""
    assert dashboard.FILE.read_text() == dashboard.text()


def test_panels_have_different_ids_and_titles() -> None:
    """Grafana finds a panel by its id, and people by its title."""
    panels = json.loads(dashboard.text())["panels"]
    for key in ("id", "title"):
        assert len({panel[key] for panel in panels}) == len(panels)


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(dashboard.text())["panels"]:
        place = panel["gridPos"]
        cells = {
            (place["x"] + column, place["y"] + line)
            for column in range(place["w"])
            for line in range(place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
