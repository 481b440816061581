"""The settings of a session, for any URL, environment and role."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, NullPool, make_url, text

from storage.database import Database
from storage.session import make_engine, parse_time

ZONES = ["UTC", "Asia/Tokyo", "America/New_York", "Asia/Kolkata", "Pacific/Kiritimati"]
FIRST, LAST = dt.datetime(1, 1, 3), dt.datetime(9999, 12, 30)  # noqa: DTZ001

BOTH_TEXTS = text("SELECT cast(:time AS timestamptz)::text, to_jsonb(cast(:time AS timestamptz))")
SESSION = text("""
    SELECT current_setting('TimeZone'), current_setting('client_encoding'),
        current_setting('statement_timeout'), current_setting('application_name')
""")


def with_query(url: str, **query: str) -> str:
    return make_url(url).update_query_dict(query).render_as_string(hide_password=False)


def session(url: str) -> tuple[str, ...]:
    database = Database(url, statement_timeout_seconds=7)
    try:
        return tuple(database.read(SESSION)[0])
    finally:
        database.close()


@pytest.fixture(scope="module")
def connection(database_url: str) -> Iterator[Connection]:
    engine = make_engine(database_url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        yield connection


# --- Times ----------------------------------------------------------------------------------------


@given(time=st.datetimes(FIRST, LAST, timezones=st.just(dt.UTC)), zone=st.sampled_from(ZONES))
def test_a_time_is_read_as_written_in_any_time_zone(
    connection: Connection, time: dt.datetime, zone: str
) -> None:
    connection.execute(text("SELECT set_config('TimeZone', :zone, false)"), {"zone": zone})
    for written in connection.execute(BOTH_TEXTS, {"time": time}).one():
        assert parse_time(written) == time
        assert parse_time(written).tzinfo is dt.UTC
    (read,) = connection.execute(text("SELECT cast(:time AS timestamptz)"), {"time": time}).one()
    assert read == time


@pytest.mark.parametrize("written", ["", "infinity", "-infinity", "rubbish", "20000-01-01"])
def test_what_is_no_time_of_the_contract_is_an_error(written: str) -> None:
    with pytest.raises((ValueError, OverflowError)):
        parse_time(written)


# --- What the service needs -----------------------------------------------------------------------


def test_a_session_is_in_utc_and_utf8_and_has_a_timeout(database_url: str) -> None:
    assert session(database_url) == ("UTC", "UTF8", "7s", "task-service")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PGTZ", "Asia/Tokyo"),
        ("PGCLIENTENCODING", "LATIN1"),
        ("PGOPTIONS", "-c timezone=Asia/Tokyo -c client_encoding=LATIN1 -c statement_timeout=1h"),
    ],
)
def test_the_environment_does_not_change_what_is_needed(
    database_url: str, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert session(database_url)[:3] == ("UTC", "UTF8", "7s")


@pytest.mark.parametrize(
    "query",
    [
        {"client_encoding": "LATIN1"},
        {"options": "-c timezone=Asia/Tokyo"},
        {"options": "-c statement_timeout=1h"},
    ],
    ids=str,
)
def test_the_url_does_not_change_what_is_needed(database_url: str, query: dict[str, str]) -> None:
    assert session(with_query(database_url, **query))[:3] == ("UTC", "UTF8", "7s")


@pytest.mark.parametrize("setting", ["timezone = 'Asia/Tokyo'", "client_encoding = 'LATIN1'"])
def test_settings_of_the_database_do_not_change_what_is_needed(
    own_database_url: str, setting: str
) -> None:
    engine = make_engine(own_database_url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(
            text(f"ALTER DATABASE {make_url(own_database_url).database} SET {setting}")
        )
    assert session(own_database_url)[:3] == ("UTC", "UTF8", "7s")


# --- What the operator says -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    [
        {"options": "-csearch_path=app"},
        {"options": "-c search_path=app -c lock_timeout=5s"},
        {"options": "-csearch_path=app", "connect_timeout": "3", "keepalives_idle": "7"},
    ],
    ids=str,
)
def test_options_of_the_url_hold(database_url: str, query: dict[str, str]) -> None:
    with make_engine(with_query(database_url, **query)).connect() as connection:
        assert connection.scalar(text("SHOW search_path")) == "app"
        driver = connection.connection.driver_connection
        assert driver is not None
        parameters = driver.info.dsn_parameters
        assert parameters["options"] == query["options"]
        assert parameters["connect_timeout"] == query.get("connect_timeout", "5")
        assert parameters["keepalives_idle"] == query.get("keepalives_idle", "20")


def test_options_of_the_environment_hold(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGOPTIONS", "-c search_path=app")
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "9")
    with make_engine(database_url).connect() as connection:
        assert connection.scalar(text("SHOW search_path")) == "app"
        driver = connection.connection.driver_connection
        assert driver is not None
        assert driver.info.dsn_parameters["connect_timeout"] == "9"


def test_the_application_name_is_the_operators(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert session(with_query(database_url, application_name="of the URL"))[3] == "of the URL"
    monkeypatch.setenv("PGAPPNAME", "of the environment")
    assert session(database_url)[3] == "of the environment"
