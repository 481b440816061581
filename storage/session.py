"""How a connection to PostgreSQL is opened, and what the service sets in its session.

What the URL and libpq's environment (PGOPTIONS, PGAPPNAME …) say holds, but for the encoding and
the time zone. Nothing is set that a pooler refuses, or would leave on a connection for others:
docs/decisions/0017 has the reasons.
"""

import datetime as dt
import os
from functools import partial
from typing import Any

from psycopg2 import ProgrammingError, extensions
from psycopg2.extensions import connection as DriverConnection  # noqa: N812 - used as a type
from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import ConnectionPoolEntry

APPLICATION_NAME = "task-service"
DRIVER = "postgresql+psycopg2"
_MAX_PORT = 65535

# A peer that vanishes without a word is noticed in seconds, not in hours.
_DEFAULTS: dict[str, str | int] = {
    "connect_timeout": 5,
    "keepalives_idle": 20,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}

# Behind a pooler the process that answers is not the one that the connection was made to: it may
# be another one for the next transaction.
_BEGIN = """
    SELECT answers_itself, set_config('TimeZone', 'UTC', false), CASE
        WHEN answers_itself AND %(milliseconds)s > 0
        THEN set_config('statement_timeout', %(milliseconds)s::text, false)
    END, CASE
        WHEN answers_itself THEN set_config('plan_cache_mode', 'force_generic_plan', false)
    END
    FROM (SELECT pg_backend_pid() = %(pid)s AS answers_itself) AS backend
"""


def parse_url(text: str) -> URL | None:
    """Parse the URL of a PostgreSQL database; None if it is not one.

    It may name several hosts, as libpq allows: postgresql://user@one:5432,two/name.
    """
    scheme, _, rest = text.partition("://")
    if scheme not in {"postgres", "postgresql", DRIVER}:
        return None
    try:
        if "," in rest.partition("?")[0].rpartition("@")[2]:
            return _with_many_hosts(extensions.parse_dsn(f"postgresql://{rest}"))
        url = make_url(text)
        extensions.make_dsn(
            **dict.fromkeys(url.query, "")
        )  # Raises for an option that libpq does not know.
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


def make_engine(
    url: str,
    *,
    application_name: str = APPLICATION_NAME,
    statement_timeout_seconds: float = 0,
    **options: Any,
) -> Engine:
    """Make an engine whose connections have the session that the service needs.

    Without a pooler `info["is_direct"]` is true and statement_timeout is set; 0 leaves it as it is.
    """
    engine = create_engine(url, connect_args=_arguments(url, application_name), **options)
    milliseconds = int(statement_timeout_seconds * 1000)
    event.listen(engine, "connect", partial(_begin, milliseconds))
    return engine


def parse_time(text: str) -> dt.datetime:
    """Parse a time as PostgreSQL writes it, in any time zone."""
    time = dt.datetime.fromisoformat(text)
    return time if time.tzinfo is dt.UTC else time.astimezone(dt.UTC)


# A UUID object for each row, only to be written as text again, costs as much as the row.
_UUID_AS_TEXT = extensions.new_type((2950,), "UUID", lambda text, _cursor: text)
_TYPES = (
    extensions.new_type((1184,), "TIME", lambda text, _cursor: text and parse_time(str(text))),
    _UUID_AS_TEXT,
    extensions.new_array_type((2951,), "UUID[]", _UUID_AS_TEXT),
    extensions.new_type((5069,), "XID8", extensions.INTEGER),
)


def _arguments(url: str, application_name: str) -> dict[str, str | int]:
    given = set(make_url(url).query)
    if "PGCONNECT_TIMEOUT" in os.environ:
        given.add("connect_timeout")
    defaults = {name: value for name, value in _DEFAULTS.items() if name not in given}
    return defaults | {"client_encoding": "UTF8", "fallback_application_name": application_name}


def _begin(milliseconds: int, connection: DriverConnection, record: ConnectionPoolEntry) -> None:
    for type_ in _TYPES:
        extensions.register_type(type_, connection)
    with connection.cursor() as cursor:
        pid = connection.info.backend_pid
        cursor.execute(_BEGIN, {"milliseconds": milliseconds, "pid": pid})
        record.info["is_direct"] = cursor.fetchall()[0][0]
    connection.commit()  # Of no effect where statements commit by themselves.
