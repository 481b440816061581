"""Contexts: which options win, the file's mode, and tokens."""

import json
import stat
from pathlib import Path

import pytest
import yaml

from cli.conftest import Tasks
from taskservice_client.cli.connection import Flags, resolve
from taskservice_client.cli.contexts import Contexts

NOWHERE = "127.0.0.1:1"


@pytest.fixture
def contexts_file(environment: dict[str, str]) -> Path:
    return Path(environment["TASKS_CONTEXTS_FILE"])


def test_the_file_is_readable_by_its_owner_only(tasks: Tasks, contexts_file: Path) -> None:
    assert tasks("context", "add", "prod", "--address", "tasks.example:443").code == 0
    assert stat.S_IMODE(contexts_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(contexts_file.parent.stat().st_mode) == 0o700
    assert [file.name for file in contexts_file.parent.iterdir()] == [contexts_file.name]


def test_a_context_keeps_only_what_was_given(tasks: Tasks, contexts_file: Path) -> None:
    tasks(
        *["context", "add", "prod", "--address", "tasks.example:443", "--token-command", "login"],
        *["--tls-ca", "/etc/ca.pem", "--timeout", "5", "-v"],
    )
    tasks("context", "add", "test", "--address", NOWHERE, "--no-tls")
    assert yaml.safe_load(contexts_file.read_text()) == {
        "current": "prod",
        "contexts": {
            "prod": {
                "address": "tasks.example:443",
                "token_command": "login",
                "tls_ca": "/etc/ca.pem",
                "timeout": "5.0",
            },
            "test": {"address": NOWHERE, "tls": "false"},
        },
    }


def test_list_use_and_remove(tasks: Tasks) -> None:
    for name in ["one", "two"]:
        tasks("context", "add", name, "--address", NOWHERE)
    assert tasks("context", "use", "two").code == 0
    assert tasks("context", "remove", "one").code == 0
    records = json.loads(tasks("context", "list", "-o", "json").output)
    assert records == [{"name": "two", "current": True, "address": NOWHERE}]
    assert tasks("context", "use", "one").code == 2


def test_the_environment_wins_over_the_context_in_use(tasks: Tasks) -> None:
    tasks("context", "add", "away", "--address", NOWHERE)
    assert tasks("stats", "--timeout", "1").code == 0


def test_a_context_in_a_flag_wins_over_the_environment(tasks: Tasks) -> None:
    tasks("context", "add", "away", "--address", NOWHERE)
    assert tasks("stats", "--timeout", "1", "--context", "away").code == 6


def test_a_flag_wins_over_everything(tasks: Tasks, address: str) -> None:
    tasks("context", "add", "away", "--address", NOWHERE)
    assert tasks("stats", "--context", "away", "--address", address).code == 0


def test_the_context_in_use_is_the_last_resort(
    tasks: Tasks, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks("context", "add", "here", "--address", address)
    monkeypatch.delenv("TASKS_ADDRESS")
    assert tasks("stats").code == 0


def test_a_broken_file_is_reported_in_one_line(tasks: Tasks, contexts_file: Path) -> None:
    contexts_file.parent.mkdir()
    contexts_file.write_text("contexts: [")
    result = tasks("stats")
    assert result.code == 2
    assert result.errors.startswith(f"tasks: {contexts_file}: cannot be read as contexts")


def test_a_new_context_is_shown_to_programs(tasks: Tasks) -> None:
    result = tasks("context", "add", "one", "--address", NOWHERE, "-o", "json")
    assert json.loads(result.output) == {"name": "one", "current": True, "address": NOWHERE}


def test_plaintext_of_a_context_is_for_its_own_address_only() -> None:
    local = {"address": NOWHERE, "tls": "false", "token_command": "login"}
    contexts = Contexts("local", {"local": local})
    assert resolve(Flags(), {}, contexts)["tls"] == "false"
    assert "tls" not in resolve(Flags(address="tasks.example:443"), {}, contexts)
    assert "tls" not in resolve(Flags(), {"address": "tasks.example:443"}, contexts)
    assert resolve(Flags(address="tasks.example:443", tls=False), {}, contexts)["tls"] == "false"
