""".github/workflows: least permissions, pinned actions, and only commands of the Makefile."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


class Step(TypedDict, total=False):
    uses: str
    run: str


Job = TypedDict(
    "Job",
    {"permissions": dict[str, str], "timeout-minutes": int, "uses": str, "steps": list[Step]},
    total=False,
)


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    found: Path = request.param
    return found


def jobs(path: Path) -> dict[str, Job]:
    found: dict[str, Job] = yaml.safe_load(path.read_text())["jobs"]
    return found


def steps(path: Path) -> Iterator[Step]:
    for job in jobs(path).values():
        yield from job.get("steps", [])


def test_a_workflow_has_no_permission_that_a_job_does_not_name(path: Path) -> None:
    assert yaml.safe_load(path.read_text())["permissions"] == {}
    for name, job in jobs(path).items():
        assert "permissions" in job, name
        assert "timeout-minutes" in job or "uses" in job, name


def test_runs_of_a_workflow_do_not_overtake_each_other(path: Path) -> None:
    assert "group" in yaml.safe_load(path.read_text())["concurrency"]


def test_an_action_is_pinned_by_its_commit_and_names_its_version(path: Path) -> None:
    for line in re.findall(r"uses: (.*)", path.read_text()):
        assert line.startswith("./") or re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v[\d.]+", line)


def test_all_workflows_use_one_version_of_an_action() -> None:
    used = {step["uses"] for path in WORKFLOWS for step in steps(path) if "uses" in step}
    assert len({action.split("@")[0] for action in used}) == len(used)


def test_steps_run_targets_of_the_makefile(path: Path) -> None:
    """What the pipeline does can be done on every machine."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for step in steps(path):
        if "run" in step:
            made = re.fullmatch(r"make ([a-z-]+)", step["run"])
            assert step["run"] == "bash .ci/run" or (made and made[1] in targets)


def test_notes_are_the_message_of_the_tag_and_its_commits(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.com")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True)

    git("init", "--quiet")
    for version, subjects in {"v1.0.0": ["First"], "v1.1.0": ["Second", "Third"]}.items():
        for subject in subjects:
            git("commit", "--quiet", "--allow-empty", "--message", subject)
        git("tag", "--annotate", "--message", f"{version}: migrate first", version)

    def notes(tag: str) -> str:
        script = ROOT / "deploy" / "release" / "notes.sh"
        return subprocess.check_output([script, tag], cwd=tmp_path, text=True)

    assert notes("v1.0.0") == "v1.0.0: migrate first\n\n\n## Changes\n\n- First\n"
    assert "v1.1.0: migrate first" in notes("v1.1.0")
    assert notes("v1.1.0").endswith("## Changes since v1.0.0\n\n- Second\n- Third\n")
