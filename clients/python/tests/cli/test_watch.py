"""Changes are followed as they happen, also across restarts of the command."""

import json
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from cli.conftest import PROGRAM
from taskservice_client import TaskClient


@contextmanager
def watching(environment: dict[str, str], *arguments: str) -> Iterator[Iterator[str]]:
    """Run `tasks watch`, and yield its lines as they come."""
    with subprocess.Popen(
        [*PROGRAM, "watch", *arguments], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        yield iter(process.stdout.readline, "")
        process.kill()


def test_each_change_is_a_line_of_json_at_once(
    environment: dict[str, str], client: TaskClient
) -> None:
    tag = uuid4().hex
    task = client.create(title="a", tags=[tag])
    with watching(environment, "--tag", tag, "--initial", "-o", "jsonl") as lines:
        first, bookmark = (json.loads(next(lines)) for _ in range(2))
        assert (first["type"], first["task"]["id"]) == ("ADDED", task.id)
        assert (bookmark["type"], bookmark["task"]) == ("BOOKMARK", None)
        client.update(task.id, title="b")
        changed = json.loads(next(lines))
        assert (changed["type"], changed["task"]["title"]) == ("MODIFIED", "b")


def test_a_table_has_one_line_for_each_change(
    environment: dict[str, str], client: TaskClient
) -> None:
    tag = uuid4().hex
    task = client.create(title="a", priority="URGENT", tags=[tag])
    with watching(environment, "--tag", tag, "--initial") as lines:
        assert next(lines).split()[2:] == ["ADDED", task.id, "PENDING", "URGENT", "a"]
        client.delete(task.id)
        assert next(lines).split()[2] == "DELETED"


def test_a_watch_resumes_where_its_token_file_says(
    environment: dict[str, str], client: TaskClient, tmp_path: Path
) -> None:
    tag = uuid4().hex
    options = ["--tag", tag, "--initial", "--token-file", str(tmp_path / "token"), "-o", "jsonl"]
    client.create(title="before", tags=[tag])
    with watching(environment, *options) as lines:
        assert json.loads(next(lines))["task"]["title"] == "before"
        assert json.loads(next(lines))["type"] == "BOOKMARK"
        client.create(title="seen", tags=[tag])
        assert json.loads(next(lines))["task"]["title"] == "seen"
        client.create(title="last", tags=[tag])
        assert json.loads(next(lines))["task"]["title"] == "last"
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
    client.create(title="missed", tags=[tag])
    with watching(environment, *options) as lines:
        # An event comes again if its token was not written yet.
        titles = list(iter(lambda: json.loads(next(lines))["task"]["title"], "missed"))
        assert titles in ([], ["last"], ["seen", "last"])
