"""The command line: `task-service` and `python -m server`.

Nothing here imports grpc: workers are forked from this process, and each imports it for itself.
"""

import argparse
import datetime as dt
import gc
import math
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import jwt
import structlog

from server.access.principal import Scope, name_problem
from server.access.tokens import MAX_TOKEN_MINUTES, SYMMETRIC
from server.network.certificates import certificates
from server.process.ports import AddressError, Ports, WorkerSlot, listen_address, reserve_port
from server.process.supervisor import Supervisor
from server.settings import Settings, SettingsError
from server.settings.ignored import ignored_variables
from server.telemetry import logs
from server.telemetry.sampling import ignored_values
from storage import schema
from storage.embedded import EmbeddedPostgres, EmbeddedPostgresError
from storage.errors import DatabaseUnavailableError

log = structlog.get_logger()

OK, FAILED, MISCONFIGURED = 0, 1, 2
_FAILURES = AddressError, DatabaseUnavailableError, EmbeddedPostgresError, schema.SchemaError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return 0, 1 for a failure, or 2 for an error in the settings."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupted)
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # Until handlers are installed.
    options = vars(_parser().parse_args(arguments))
    command: Callable[..., bool] = options.pop("command")
    try:
        settings = Settings.load()
        logs.configure(settings)
        return OK if command(settings, **options) else FAILED
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return MISCONFIGURED
    except _FAILURES as error:
        log.critical(str(error))
        return FAILED


def _interrupted(number: int, _frame: object) -> None:
    # The first process of a container needs a handler, and imports may swallow an exception.
    os._exit(128 + number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="task-service",
        description="Task management over gRPC. Settings come from the environment and .env; "
        ".env.example lists them.",
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    parsers = {}
    for command in (serve, migrate, token):
        summary = (command.__doc__ or "").splitlines()[0]
        parsers[command] = commands.add_parser(command.__name__, help=summary, description=summary)
        parsers[command].set_defaults(command=command)
    _add_token_arguments(parsers[token])
    return parser


def _add_token_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sub", required=True, type=_name, help="the principal that it names")
    parser.add_argument(
        "--scope",
        nargs="+",
        default=["tasks:read", "tasks:write"],
        choices=get_args(Scope),
        help="what it permits; by default to read and to write",
    )
    how_long = "how long it is good; ACCESS_TOKEN_EXPIRE_MINUTES by default"
    parser.add_argument("--minutes", type=_minutes, help=how_long)


def _name(text: str) -> str:
    if problem := name_problem(text):
        raise argparse.ArgumentTypeError(problem)
    return text


def _minutes(text: str) -> int:
    if not 0 < int(text) <= MAX_TOKEN_MINUTES:
        raise argparse.ArgumentTypeError(f"must be 1 to {MAX_TOKEN_MINUTES}: longer is not taken")
    return int(text)


def serve(settings: Settings) -> bool:
    """Serve until SIGTERM or SIGINT."""
    log.info("starting", version=settings.version, environment=settings.environment)
    for line in [*ignored_variables(), *ignored_values(settings)]:
        log.warning(line)
    settings.key()  # Made here once, not by every worker.
    _prepare_connections(settings)
    with _database(settings) as url:
        _check_database(settings, url)
        serve_here = _serve_alone if settings.worker_count == 1 else _serve_supervised
        in_order = serve_here(settings, url)
    # Python would join threads, and one may wait for a database that never answers.
    os._exit(OK if in_order else FAILED)


def _prepare_connections(settings: Settings) -> None:
    """Prepare the process before workers are forked and import grpc. Raises: SettingsError."""
    encrypted = certificates(settings) or settings.tls_terminated_upstream
    if settings.environment == "staging" and not encrypted:
        log.warning("plaintext: set TLS_CERT_FILE or TLS_TERMINATED_UPSTREAM")
    # Each failed handshake would write a line that is no JSON.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    # Each connection is a file; the soft limit is often 1024.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def migrate(settings: Settings) -> bool:
    """Bring the database's schema to the newest revision."""
    with _database(settings) as url:
        note = schema.upgrade(settings.direct_database_url or url)
    log.info(note or "the schema is at the newest revision")
    return True


def token(settings: Settings, *, sub: str, scope: list[str], minutes: int | None) -> bool:
    """Print a token signed with SECRET_KEY, for development and tests.

    Not in production, where the issuer signs. Raises: SettingsError.
    """
    if settings.environment == "production":
        raise SettingsError(["ENVIRONMENT: no tokens are made in production"])
    if SYMMETRIC not in settings.algorithms:
        raise SettingsError([f"ALGORITHM: must have {SYMMETRIC} for tokens made here"])
    lifetime = dt.timedelta(minutes=minutes or settings.access_token_expire_minutes)
    now = dt.datetime.now(dt.UTC)
    claims = {"sub": sub, "scope": " ".join(scope), "iat": now, "exp": now + lifetime}
    named = {"iss": settings.jwt_issuer, "aud": settings.jwt_audience}
    claims |= {claim: value for claim, value in named.items() if value}
    sys.stdout.write(jwt.encode(claims, settings.key(), SYMMETRIC) + "\n")
    return True


@contextmanager
def _database(settings: Settings) -> Iterator[str]:
    """Yield the URL of the configured database, or of the embedded one, started and migrated."""
    if settings.explicit_database_url is not None:
        yield settings.explicit_database_url
        return
    with EmbeddedPostgres(settings.data_dir) as embedded:
        schema.upgrade(embedded.url)
        log.info("embedded PostgreSQL", psql=f"psql -h {embedded.socket_dir} -U tasks tasks")
        yield embedded.url


def _check_database(settings: Settings, url: str) -> None:
    """Check the schema, without waiting for it or for its database. Raises: SchemaError."""
    try:
        for advice in schema.check(
            url, settings.direct_database_url, connections=settings.database_connections
        ):
            log.warning(advice)
    except DatabaseUnavailableError as error:
        log.warning("the database is away; serving once it is back", why=str(error))
    except schema.BehindError as error:
        log.warning("serving once the schema is migrated", why=str(error))


def _serve_alone(settings: Settings, url: str) -> bool:
    from server.worker import serve as serve_calls  # noqa: PLC0415

    with _reserved(settings) as ports:
        return serve_calls(
            settings, url, WorkerSlot(ports), on_serving=lambda: _announce(settings, ports)
        )


def _serve_supervised(settings: Settings, url: str) -> bool:
    # Workers share the memory of what is imported now, and does not import grpc. Their garbage
    # collections leave it out: they write to each object, and such a page is copied.
    for module in ("server.tasks.filters", "server.tasks.validation", "storage.repository"):
        import_module(module)
    gc.freeze()
    with _reserved(settings) as ports, _metrics_folder(settings) as folder:

        def serve_worker(number: int, supervisor: int, report: Callable[[], object]) -> bool:
            from server.worker import serve as serve_calls  # noqa: PLC0415

            slot = WorkerSlot(ports, number, folder, (supervisor,))
            return serve_calls(settings, url, slot, on_serving=report)

        return Supervisor(
            settings.worker_count,
            serve_worker,
            on_serving=lambda: _announce(settings, ports),
            stop_within_seconds=settings.drain_delay_seconds + settings.shutdown_grace_seconds + 10,
            max_rss_bytes=(settings.worker_max_rss_mb or math.inf) * 1024 * 1024,
        ).run()


@contextmanager
def _metrics_folder(settings: Settings) -> Iterator[Path | None]:
    """Create the private folder where workers exchange metrics. Raises: SettingsError."""
    if settings.metrics_port is None:
        yield None
        return
    # Shared memory can be written where the root file system cannot.
    for parent in (None, "/dev/shm"):  # noqa: S108
        with suppress(OSError):
            folder = TemporaryDirectory(prefix="tasks-", dir=parent)
            break
    else:
        raise SettingsError(
            ["TMPDIR: must be a folder that can be written, for METRICS_PORT with WORKERS > 1"]
        )
    with folder as path:
        yield Path(path)


@contextmanager
def _reserved(settings: Settings) -> Iterator[Ports]:
    """Reserve the ports of the settings; a free port for 0. Raises: AddressError."""
    # A service with a database of its own never shares its ports with another service.
    may_join = settings.explicit_database_url is not None
    wanted = {
        "grpc": ("GRPC", settings.grpc_host, settings.grpc_port),
        "health": ("GRPC", settings.grpc_host, settings.health_port),
        "metrics": ("METRICS", settings.metrics_on, settings.metrics_port),
    }
    with ExitStack() as bound:
        ports = Ports(0)
        for name, (owner, host, port) in wanted.items():
            if port is not None:
                names = f"{owner}_HOST or {name.upper()}_PORT"
                held = bound.enter_context(reserve_port(host, port, names, may_join=may_join))
                ports = ports._replace(**{name: held.getsockname()[1]})
        yield ports


def _announce(settings: Settings, ports: Ports) -> None:
    address = listen_address(settings.grpc_host, ports.grpc)
    others = {name: port for name, port in ports._asdict().items() if port is not None}
    others.pop("grpc")
    log.info("serving", address=address, workers=settings.worker_count, **others)


if __name__ == "__main__":
    sys.exit(main())
