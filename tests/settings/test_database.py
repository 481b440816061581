"""Settings of the database."""

from __future__ import annotations

import pytest
from sqlalchemy.engine import make_url

from tests.support.settings import SAFE, URL, Load, mistakes


@pytest.mark.parametrize("environment", ["staging", "production"])
def test_staging_and_production_need_a_database(load: Load, environment: str) -> None:
    """The embedded one would lose everything with the container."""
    assert mistakes(load, **SAFE | {"ENVIRONMENT": environment, "DATABASE_URL": ""}) == [
        f"DATABASE_URL: must be set (or DB_HOST) in {environment}"
    ]


@pytest.mark.parametrize("database", [{"DATABASE_URL": URL}, {"DB_HOST": "db.example"}])
def test_a_database_may_be_named_in_either_way(load: Load, database: dict[str, str]) -> None:
    loaded = load(**SAFE | {"DATABASE_URL": ""} | database)
    assert make_url(loaded.explicit_database_url or "").host == "db.example"


def test_a_database_named_in_both_ways_is_refused(load: Load) -> None:
    assert mistakes(load, DATABASE_URL=URL, DB_HOST="db.example") == [
        "DATABASE_URL: set either this or DB_HOST, not both"
    ]


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2"])
def test_every_scheme_of_postgresql_selects_the_driver(load: Load, scheme: str) -> None:
    """Platforms hand out `postgres://`, which SQLAlchemy does not know."""
    url = load(DATABASE_URL=f"{scheme}://u:p@h:1/n?sslmode=require").explicit_database_url
    assert url == "postgresql+psycopg2://u:p@h:1/n?sslmode=require"


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "mysql://u@h/n",
        "postgresql+asyncpg://u@h/n",
        "postgresql://u@h:port/n",
        "h/n",
        "postgresql://u@h:99999/n",
        "postgresql://u@h/n?sslmod=require",
    ],
)
def test_a_malformed_database_url_is_refused(load: Load, url: str) -> None:
    assert mistakes(load, DATABASE_URL=url) == [
        "DATABASE_URL: must be a URL such as postgresql://user:password@host/name"
    ]


@pytest.mark.parametrize("password", ["p@ss:w/o?r#d", "100%", "%40", "ä €", '"\\', "+&="])
def test_a_password_survives_being_put_into_the_url(load: Load, password: str) -> None:
    loaded = load(
        DB_HOST="h", DB_PORT="1", DB_NAME="n", DB_USER="u@corp", DB_PASSWORD=password
    ).explicit_database_url
    url = make_url(loaded or "")
    assert (url.drivername, url.host, url.port, url.database) == (
        "postgresql+psycopg2",
        "h",
        1,
        "n",
    )
    assert (url.username, url.password) == ("u@corp", password)


def test_the_password_may_be_left_out(load: Load) -> None:
    """For the methods that need none: a socket's peer, a certificate, a .pgpass."""
    assert load(DB_HOST="h").explicit_database_url == "postgresql+psycopg2://tasks@h:5432/tasks"
