"""Database URLs, as libpq and SQLAlchemy write them."""

from __future__ import annotations

from psycopg2 import ProgrammingError
from psycopg2.extensions import make_dsn, parse_dsn
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

DRIVER = "postgresql+psycopg2"
_MAX_PORT = 65535


def parse_url(text: str) -> URL | None:
    """Parse the URL of a PostgreSQL database; None if it is not one.

    It may name several hosts, as libpq allows: postgresql://user@one:5432,two/name.
    """
    scheme, _, rest = text.partition("://")
    if scheme not in {"postgres", "postgresql", DRIVER}:
        return None
    try:
        if "," in rest.partition("?")[0].rpartition("@")[2]:
            return _with_many_hosts(parse_dsn(f"postgresql://{rest}"))
        url = make_url(text)
        make_dsn(**dict.fromkeys(url.query, ""))  # Raises for an option that libpq does not know.
    except (ArgumentError, ValueError, ProgrammingError):
        return None
    if not (url.port is None or 0 < url.port <= _MAX_PORT):
        return None
    return url.set(drivername=DRIVER)


def _with_many_hosts(parts: dict[str, str]) -> URL | None:
    hosts = parts["host"]
    parts.setdefault("port", "," * hosts.count(","))
    if not all(0 < int(port or 1) <= _MAX_PORT for port in parts["port"].split(",")):
        return None
    user, password, name = (parts.pop(part, None) for part in ("user", "password", "dbname"))
    return URL.create(DRIVER, username=user, password=password, database=name, query=parts)
