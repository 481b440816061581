"""Run PgBouncer in transaction mode before a test's PostgreSQL."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg2
from sqlalchemy import make_url

from tests.support.ports import held_port
from tests.support.programs import debian_program
from tests.support.service import wait_until

# It refuses to run as root; a mapped user is root to the file system, where PostgreSQL's socket is.
_AS_MAPPED_USER = ("unshare", "--user", "--map-user=65534", "--")

DEFAULTS: dict[str, str] = {}
LENIENT = {"ignore_startup_parameters": "options,extra_float_digits"}
"""As set by operators whose clients send options."""


@contextmanager
def running_pgbouncer(folder: Path, url: str, settings: dict[str, str]) -> Iterator[str]:
    """A PgBouncer that leads to the URL's server; yields the URL that goes by way of it.

    It has three connections to a database, so that its clients share them.
    """
    program = debian_program("/usr/sbin/pgbouncer", "pgbouncer")
    folder.mkdir(exist_ok=True)
    config = folder / "pgbouncer.ini"
    log = folder / "pgbouncer.log"
    command = [*(_AS_MAPPED_USER if os.geteuid() == 0 else ()), program, str(config)]
    with held_port(int(settings.get("listen_port", 0))) as port, log.open("wb") as output:
        config.write_text(_config(url, port, settings))
        process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            wait_until(lambda: _answers(port) or process.poll() is not None, "PgBouncer answers")
            assert process.poll() is None, log.read_text()
            to = make_url(url)
            yield f"postgresql+psycopg2://{to.username}@127.0.0.1:{port}/{to.database}"
        finally:
            process.kill()
            process.wait()


def _config(url: str, port: int, settings: dict[str, str]) -> str:
    to = make_url(url)
    server = {
        "host": to.host or to.query["host"],
        "port": to.port or to.query.get("port", "5432"),
        "user": to.username,
        "password": to.password,
    }
    there = " ".join(f"{name}='{value}'" for name, value in server.items() if value)
    lines = {
        "listen_addr": "127.0.0.1",
        "listen_port": str(port),
        "unix_socket_dir": "",
        "auth_type": "any",
        "pool_mode": "transaction",
        "default_pool_size": "3",
    } | settings
    own = "\n".join(f"{name} = {value}" for name, value in lines.items())
    return f"[databases]\n* = {there}\n\n[pgbouncer]\n{own}\n"


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def ask(url: str, statement: str) -> object:
    """The first value of a statement's answer, as any other client of the pooler has it."""
    to = make_url(url)
    connection = psycopg2.connect(host=to.host, port=to.port, user=to.username, dbname=to.database)
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement)
            (value,) = cursor.fetchone() or (None,)
            return value
    finally:
        connection.close()
