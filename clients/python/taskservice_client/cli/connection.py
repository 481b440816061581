"""Resolve the options of a connection: flags, else the environment, else a context."""

import os
import shlex
import subprocess
from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import typer

from taskservice_client import TaskClient, Tls
from taskservice_client.cli.contexts import Contexts, context_names
from taskservice_client.cli.exits import CommandError

DEFAULT_ADDRESS = "127.0.0.1:50051"
DEFAULT_TIMEOUT = 20.0
_FILES = ("tls_ca", "tls_cert", "tls_key")
_SWITCH = dict.fromkeys(("1", "true", "yes", "on"), True) | dict.fromkeys(
    ("0", "false", "no", "off"), False
)

Options = Mapping[str, str]


def _option(name: str, help_: str, variable: str) -> object:
    panel = "Connection"
    return typer.Option(name, help=f"{help_} [{variable}]", rich_help_panel=panel)


@dataclass(frozen=True, kw_only=True)
class Flags:
    """The options of a connection that every command takes; a context stores all but its name."""

    context: Annotated[
        str | None,
        typer.Option(
            "--context",
            help="A context instead of the one in use. [TASKS_CONTEXT]",
            autocompletion=context_names,
            rich_help_panel="Connection",
        ),
    ] = None
    address: Annotated[
        str | None, _option("--address", f"By default {DEFAULT_ADDRESS}.", "TASKS_ADDRESS")
    ] = None
    token_command: Annotated[
        str | None,
        _option("--token-command", "A program that prints a token.", "TASKS_TOKEN_COMMAND"),
    ] = None
    tls: Annotated[
        bool | None,
        _option("--tls/--no-tls", "By default TLS, except to this machine.", "TASKS_TLS"),
    ] = None
    tls_ca: Annotated[
        str | None, _option("--tls-ca", "A file with the CAs to trust.", "TASKS_TLS_CA")
    ] = None
    tls_cert: Annotated[
        str | None, _option("--tls-cert", "The client's certificate.", "TASKS_TLS_CERT")
    ] = None
    tls_key: Annotated[
        str | None, _option("--tls-key", "The key of the certificate.", "TASKS_TLS_KEY")
    ] = None
    timeout: Annotated[
        float | None,
        _option(
            "--timeout", f"Seconds of a call, {DEFAULT_TIMEOUT:g} by default.", "TASKS_TIMEOUT"
        ),
    ] = None

    def given(self) -> dict[str, str]:
        """Return the options that were given, but for the name of the context."""
        values = {item.name: getattr(self, item.name) for item in fields(Flags)}
        del values["context"]
        if self.tls is not None:
            values["tls"] = "true" if self.tls else "false"
        return {name: str(value) for name, value in values.items() if value is not None}


def environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the options that the environment has: TASKS_ADDRESS, TASKS_TOKEN …"""
    names = [item.name for item in fields(Flags)] + ["token"]
    return {name: value for name in names if (value := environ.get(f"TASKS_{name.upper()}"))}


def resolve(flags: Flags, variables: Options, contexts: Contexts) -> Options:
    """Merge the options: flags win over the environment, the environment over a context.

    A context that a flag names wins over the environment, so that `--context prod` never means
    another address. The plaintext of a context is for the context's own address only.
    """
    name = flags.context or variables.get("context") or contexts.current
    of_context = dict(contexts.options(name)) if name else {}
    others = [of_context, dict(variables)] if flags.context else [dict(variables), of_context]
    layers = [flags.given(), *others]
    address = ChainMap(*layers).get("address")
    if uses_tls(of_context) is False and address != of_context.get("address"):
        del of_context["tls"]
    return ChainMap(*_one_token(layers))


def _one_token(layers: list[dict[str, str]]) -> list[dict[str, str]]:
    """Keep the credentials of the first layer that has any: they are one option in two forms."""
    kept: list[dict[str, str]] = []
    found = False
    for layer in layers:
        own = {"token", "token_command"} & layer.keys()
        kept.append({name: layer[name] for name in layer if not (found and name in own)})
        found = found or bool(own)
    return kept


def connect(options: Options) -> TaskClient:
    """Open a client."""
    timeout = timeout_of(options) or DEFAULT_TIMEOUT
    return TaskClient(
        options.get("address", DEFAULT_ADDRESS),
        token=token_of(options, timeout),
        tls=tls_of(options),
        timeout=timeout,
    )


def timeout_of(options: Options) -> float | None:
    """Return the seconds of a call, if an option says so."""
    try:
        return float(options["timeout"]) if "timeout" in options else None
    except ValueError as error:
        raise CommandError(f"the timeout is no number: {options['timeout']}") from error


def tls_of(options: Options) -> Tls | bool | None:
    """Return certificates, or whether to use TLS; None means TLS except to this machine."""
    ca, certificate, key = (Path(options[name]) if name in options else None for name in _FILES)
    if not (ca or certificate or key):
        return uses_tls(options)
    if uses_tls(options) is False:
        raise CommandError("TLS is off (--no-tls or TASKS_TLS), but there are certificates for it")
    return Tls(ca, certificate, key)


def uses_tls(options: Options) -> bool | None:
    """Return whether an option turns TLS on or off. Raises: CommandError."""
    if "tls" not in options:
        return None
    value = str(options["tls"]).lower()
    if value not in _SWITCH:
        raise CommandError(f"TLS is neither true nor false: {value}")
    return _SWITCH[value]


def token_of(options: Options, timeout: float) -> str | Callable[[], str] | None:
    """Return the token, or a callable that has the command print one."""
    if token := options.get("token"):
        return token
    command = options.get("token_command")
    return (lambda: printed_token(command, timeout)) if command else None


def printed_token(command: str, timeout: float) -> str:
    """Run the command, without a shell; its messages go to standard error."""
    try:
        result = subprocess.run(  # noqa: S603 - the operator's own command
            shlex.split(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=timeout,
        )
    except (OSError, ValueError) as error:
        raise CommandError(f"the token command does not run: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise CommandError(
            f"the token command did not end within {timeout:g} seconds (--timeout)"
        ) from error
    except subprocess.CalledProcessError as error:
        code = error.returncode
        raise CommandError(f"the token command ended with the code {code}") from error
    if not (token := result.stdout.strip()):
        raise CommandError("the token command printed no token")
    return token
