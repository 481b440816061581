"""Tokens and certificates, of a service that requires both."""

import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest
import trustme

from cli.conftest import Tasks
from tests.support.credentials import SECRET_KEY, claims
from tests.support.service import running_service


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a certificate authority and of the service."""
    folder = tmp_path_factory.mktemp("secured")
    authority = trustme.CA()
    own = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    own.cert_chain_pems[0].write_to_path(folder / "service.pem")
    own.private_key_pem.write_to_path(folder / "service.key")
    return folder


@pytest.fixture(scope="module")
def secured_address(folder: Path) -> Iterator[str]:
    with running_service(
        folder / "service",
        AUTH_MODE="jwt",
        SECRET_KEY=SECRET_KEY,
        TLS_CERT_FILE=str(folder / "service.pem"),
        TLS_KEY_FILE=str(folder / "service.key"),
        TLS_TERMINATED_UPSTREAM="false",
    ) as service:
        yield f"127.0.0.1:{service.port}"


@pytest.fixture
def secured(
    tasks: Tasks, secured_address: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Tasks:
    """Run commands with a context of the secured service, without a token."""
    monkeypatch.delenv("TASKS_ADDRESS")
    tasks(
        *["context", "add", "secured", "--address", secured_address],
        *["--tls-ca", str(folder / "ca.pem")],
    )
    return tasks


def token(*scopes: str) -> str:
    return jwt.encode(claims("ann", *scopes, iss=None, aud=None), SECRET_KEY, "HS256")


def printing(text: str, path: Path) -> str:
    """Return a command that prints a text."""
    path.write_text(f"#!{sys.executable}\nprint({text!r})\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_the_token_of_the_command_is_sent(secured: Tasks, tmp_path: Path) -> None:
    command = printing(token(), tmp_path / "login")
    result = secured("stats", "--token-command", command)
    assert (result.code, result.errors) == (0, "")


def test_the_token_of_the_environment_is_sent(
    secured: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TASKS_TOKEN", token())
    assert secured("stats").code == 0


def test_a_token_command_in_a_flag_wins_over_a_token_of_the_environment(
    secured: Tasks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TASKS_TOKEN", token())
    command = printing(token("tasks:write"), tmp_path / "login")
    assert secured("stats", "--token-command", command).code == 5


def test_no_token_is_denied(secured: Tasks) -> None:
    result = secured("stats", "-v")
    assert result.code == 5
    assert "UNAUTHENTICATED" in result.errors


def test_a_missing_scope_is_denied_and_named(
    secured: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TASKS_TOKEN", token("tasks:read"))
    result = secured("create", "a")
    assert result.code == 5
    assert "tasks:write" in result.errors
    assert token("tasks:read") not in result.errors


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("false", "ended with the code 1"),
        ("true", "printed no token"),
        ("/no/such/program", "does not run"),
        ("an 'open quote", "does not run"),
    ],
)
def test_a_token_command_that_fails_is_reported(secured: Tasks, program: str, why: str) -> None:
    result = secured("stats", "--token-command", program)
    assert result.code == 2
    assert result.errors.startswith(f"tasks: the token command {why}")


def test_a_missing_certificate_file_is_named(secured: Tasks) -> None:
    result = secured("stats", "--tls-ca", "/no/such/file.pem")
    assert result.code == 2
    assert "/no/such/file.pem: No such file or directory" in result.errors


def test_a_token_command_that_does_not_end_is_killed(secured: Tasks) -> None:
    result = secured("stats", "--token-command", "sleep 60", "--timeout", "0.5")
    message = "tasks: the token command did not end within 0.5 seconds (--timeout)\n"
    assert (result.code, result.errors) == (2, message)


def test_certificates_without_tls_are_refused(
    secured: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TASKS_TLS", "false")
    result = secured("stats")
    assert result.code == 2
    assert result.errors.startswith("tasks: TLS is off")
    monkeypatch.setenv("TASKS_TLS", "flase")
    assert secured("stats").errors == "tasks: TLS is neither true nor false: flase\n"


def test_a_token_is_sent_in_plaintext_only_if_asked_for(
    tasks: Tasks, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address is this machine's, but does not say so."""
    monkeypatch.setenv("TASKS_TOKEN", token())
    elsewhere = address.replace("127.0.0.1", "0.0.0.0")  # noqa: S104
    assert tasks("stats", "--address", elsewhere, "--timeout", "2").code == 6
    assert tasks("stats", "--address", elsewhere, "--no-tls").code == 0
