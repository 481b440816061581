"""Copy a running PostgreSQL by `pg_basebackup`."""

from __future__ import annotations

import subprocess
from pathlib import Path

from storage.embedded import EmbeddedPostgres, program
from tests.support.postgres import execute
from tests.support.service import wait_until


def base_backup(server: EmbeddedPostgres, data_dir: Path, *options: str) -> None:
    """Copy the files of a running server, for another embedded one in `data_dir`."""
    data_dir.mkdir(mode=0o700)
    to = [f"--host={server.socket_dir}", "--port=5432", "--username=tasks"]
    to.append(f"--pgdata={data_dir / 'postgres'}")
    subprocess.run([program("pg_basebackup"), *to, "--checkpoint=fast", *options], check=True)


def await_primary(server: EmbeddedPostgres) -> None:
    """Wait until the server has recovered and accepts writes."""
    wait_until(lambda: not execute(server.url, "SELECT pg_is_in_recovery()"), "recovered")
