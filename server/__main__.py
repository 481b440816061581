"""The command line: `task-service` and `python -m server`.

Nothing here imports grpc: workers are forked from this process, and each imports it for itself.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import structlog
from sqlalchemy import make_url

from server import logs
from server.process import AddressError, listen_address, reserve_port
from server.settings import Settings, SettingsError
from server.supervisor import Supervisor
from storage import schema
from storage.embedded import EmbeddedPostgres, EmbeddedPostgresError
from storage.errors import DatabaseUnavailableError

log = structlog.get_logger()

OK, FAILED, MISCONFIGURED = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code: 0, 1 for a failure, 2 for a mistake in settings."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupted)
    command: Callable[[Settings], bool] = _parser().parse_args(arguments).command
    try:
        settings = Settings.load()
        logs.configure(settings)
        return OK if command(settings) else FAILED
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return MISCONFIGURED
    except (
        AddressError,
        DatabaseUnavailableError,
        EmbeddedPostgresError,
        schema.SchemaError,
    ) as error:
        log.critical(str(error))
        return FAILED


def _interrupted(number: int, _frame: object) -> None:
    """Ends at once what does not serve yet; the first process of a container needs to be told.

    An exception would not do: imports under way may swallow it.
    """
    os._exit(128 + number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="task-service",
        description="Task management over gRPC. Settings come from the environment and .env; "
        ".env.example lists them.",
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    for command in (serve, migrate):
        summary = (command.__doc__ or "").splitlines()[0]
        commands.add_parser(command.__name__, help=summary, description=summary).set_defaults(
            command=command
        )
    return parser


def serve(settings: Settings) -> bool:
    """Serve until SIGTERM or SIGINT."""
    log.info("starting", version=settings.version, environment=settings.environment)
    settings.key()  # Made here once, not by every worker.
    with _database(settings) as url:
        _check_schema(url)
        serve_here = _serve_alone if settings.worker_count == 1 else _serve_supervised
        in_order = serve_here(settings, url)
    # Python would join threads, and one may wait for a database that never answers.
    os._exit(OK if in_order else FAILED)


def migrate(settings: Settings) -> bool:
    """Bring the database's schema to the newest revision."""
    with _database(settings) as url:
        schema.upgrade(url)
    log.info("the schema is at the newest revision")
    return True


@contextmanager
def _database(settings: Settings) -> Iterator[str]:
    """The URL of the database that the settings name, or of our own, started and migrated."""
    if settings.explicit_database_url is not None:
        yield settings.explicit_database_url
        return
    with EmbeddedPostgres(settings.data_dir) as embedded:
        schema.upgrade(embedded.url)
        folder = make_url(embedded.url).query["host"]
        log.info("embedded PostgreSQL", psql=f"psql -h {folder} -U tasks tasks")
        yield embedded.url


def _check_schema(url: str) -> None:
    """Raises SchemaError; a database that is away may come back, and is not waited for."""
    try:
        schema.check(url)
    except DatabaseUnavailableError as error:
        log.warning("the database is away; serving once it is back", why=str(error))


def _serve_alone(settings: Settings, url: str) -> bool:
    from server.worker import serve as serve_calls  # noqa: PLC0415

    reserve_port(settings.grpc_host, settings.grpc_port, share=False).close()
    return serve_calls(
        settings, url, settings.grpc_port, on_ready=lambda port: _announce(settings, port)
    )


def _serve_supervised(settings: Settings, url: str) -> bool:
    with reserve_port(settings.grpc_host, settings.grpc_port, share=True) as reserved:
        port = reserved.getsockname()[1]

        def serve_shared(parent: int, on_ready: Callable[[], object]) -> bool:
            from server.worker import serve as serve_calls  # noqa: PLC0415

            return serve_calls(
                settings,
                url,
                port,
                share_port=True,
                parent=(parent,),
                on_ready=lambda _: on_ready(),
            )

        return Supervisor(
            settings.worker_count,
            serve_shared,
            on_ready=lambda: _announce(settings, port),
            stop_within_seconds=settings.drain_delay_seconds + settings.shutdown_grace_seconds + 10,
        ).run()


def _announce(settings: Settings, port: int) -> None:
    log.info(
        "serving",
        address=listen_address(settings.grpc_host, port),
        workers=settings.worker_count,
    )


if __name__ == "__main__":
    sys.exit(main())
