"""The migrations on real databases: up, down, and the databases that are rejected."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, NullPool, create_engine, event, text
from sqlalchemy.engine import Engine

from storage import schema
from storage.errors import DatabaseUnavailableError
from storage.schema import SchemaError
from storage.tables import metadata
from tests.support.databases import downgrade

ROWS = (
    "INSERT INTO tasks (id, title, status, priority, created_by) "
    "SELECT gen_random_uuid(), 'task ' || n, 1, 2, 'ann' FROM generate_series(1, 10) n",
    "INSERT INTO requests (principal, request_id, fingerprint, task_id) "
    "SELECT 'ann', gen_random_uuid(), '\\x00', id FROM tasks",
)
EVENTS = (
    "INSERT INTO task_events (xid, aggregateid, type, payload, principal) "
    "SELECT xid, id, 'created', '{}', 'ann' FROM tasks"
)
DEFINITIONS = """
    SELECT indexname AS name, indexdef AS definition FROM pg_indexes WHERE tablename = ANY(:tables)
    UNION ALL
    SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint
    WHERE conrelid = ANY(:tables ::regclass[])
    UNION ALL
    SELECT table_name || '.' || column_name,
           concat_ws(' ', data_type, is_nullable, is_identity, identity_generation, column_default)
    FROM information_schema.columns WHERE table_name = ANY(:tables)
"""
RELATIONS = (
    "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY relname"
)


@pytest.fixture
def own_database(own_database_url: str) -> Iterator[Connection]:
    with connected(own_database_url) as connection:
        yield connection


def connected(url: str) -> Connection:
    return create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT").connect()


def relations(url: str) -> list[str]:
    with connected(url) as connection:
        return list(connection.scalars(text(RELATIONS)))


def set_revision(connection: Connection, revision: str, oldest_build: str) -> None:
    values = {"revision": revision, "oldest_build": oldest_build}
    assignments = "version_num = :revision, oldest_build = :oldest_build"
    connection.execute(text(f"UPDATE alembic_version SET {assignments}"), values)  # noqa: S608


def test_upgrade_brings_an_empty_database_to_the_head(empty_database_url: str) -> None:
    schema.upgrade(empty_database_url)
    schema.check(empty_database_url)


def test_upgrade_at_the_head_keeps_the_rows(
    own_database_url: str, own_database: Connection
) -> None:
    for statement in ROWS:
        own_database.execute(text(statement))
    schema.upgrade(own_database_url)
    assert own_database.scalar(text("SELECT count(*) FROM tasks")) == 10


def test_downgrade_to_base_leaves_nothing_behind(
    own_database_url: str, own_database: Connection
) -> None:
    for statement in (*ROWS, EVENTS):
        own_database.execute(text(statement))
    downgrade(own_database_url, "base")
    assert relations(own_database_url) == ["alembic_version", "alembic_version_pkc"]


def test_upgrade_after_a_downgrade_to_base_gives_the_same_schema(own_database_url: str) -> None:
    before = relations(own_database_url)
    downgrade(own_database_url, "base")
    schema.upgrade(own_database_url)
    assert relations(own_database_url) == before
    schema.check(own_database_url)


def test_upgrade_to_events_keeps_the_tasks_there_were(
    own_database_url: str, own_database: Connection
) -> None:
    """They have no history, and the stream of events begins empty."""
    downgrade(own_database_url, "0001")
    for statement in ROWS:
        own_database.execute(text(statement))
    schema.upgrade(own_database_url)
    counts = text(
        "SELECT (SELECT count(*) FROM tasks WHERE xid = '0'::xid8), "
        "(SELECT count(*) FROM requests), (SELECT count(*) FROM task_events)"
    )
    assert own_database.execute(counts).one() == (10, 10, 0)


def test_there_is_one_horizon_and_it_is_before_every_event(own_database: Connection) -> None:
    horizon = own_database.execute(text("SELECT xid::text, id FROM event_horizon"))
    assert horizon.all() == [("0", 0)]


def test_downgrade_from_events_keeps_the_tasks(
    own_database_url: str, own_database: Connection
) -> None:
    for statement in (*ROWS, EVENTS):
        own_database.execute(text(statement))
    downgrade(own_database_url, "0001")
    assert own_database.scalar(text("SELECT count(*) FROM tasks")) == 10
    assert not {"task_events", "event_horizon"} & set(relations(own_database_url))


def test_the_build_before_events_can_still_write_tasks(own_database: Connection) -> None:
    """While a release rolls out, both builds write."""
    for statement in ROWS:
        own_database.execute(text(statement))
    assert own_database.scalar(text("SELECT count(*) FROM tasks")) == 10


def test_autogenerate_finds_nothing_to_migrate(database_url: str) -> None:
    """As `alembic check`: a change of tables.py without its migration is found here."""
    with connected(database_url) as connection:
        options = {"compare_type": True, "compare_server_default": True}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, metadata) == []


def test_the_migrations_define_what_the_tables_define(
    database_url: str, empty_database_url: str
) -> None:
    """Alembic does not compare check constraints, nor all there is to an index.

    Functions are the migrations' alone.
    """
    with connected(database_url) as migrated, connected(empty_database_url) as made:
        for function in migrated.scalars(text(FUNCTIONS)).all():
            made.exec_driver_sql(function.replace("%", "%%"))
        metadata.create_all(made)
        assert definitions(migrated) == definitions(made)


FUNCTIONS = """
    SELECT pg_get_functiondef(oid) FROM pg_proc
    WHERE pronamespace = 'public'::regnamespace ORDER BY oid
"""


def definitions(connection: Connection) -> set[tuple[str, str]]:
    rows = connection.execute(text(DEFINITIONS), {"tables": list(metadata.tables)})
    return {(row.name, row.definition) for row in rows}


def test_check_at_the_head_is_content(database_url: str) -> None:
    schema.check(database_url)


def test_an_empty_database_is_behind(empty_database_url: str) -> None:
    with pytest.raises(SchemaError, match="the schema is behind: it is at nothing"):
        schema.check(empty_database_url)


def test_a_database_migrated_down_to_base_is_behind(own_database_url: str) -> None:
    """Alembic's table stays there, without a row."""
    downgrade(own_database_url, "base")
    with pytest.raises(SchemaError, match="the schema is behind: it is at nothing"):
        schema.check(own_database_url)


def test_a_database_ahead_that_serves_newer_builds_only_is_refused(
    own_database_url: str, own_database: Connection
) -> None:
    set_revision(own_database, "9999", oldest_build="9998")
    for step in (schema.check, schema.upgrade):
        with pytest.raises(SchemaError, match="ahead: it is at 9999 and serves builds from 9998"):
            step(own_database_url)


def test_a_database_ahead_that_serves_this_build_is_accepted(
    own_database_url: str, own_database: Connection
) -> None:
    set_revision(own_database, "9999", oldest_build=schema.head_revision())
    schema.check(own_database_url)
    assert schema.check_revision(own_database).startswith("the schema is ahead: it is at 9999")


def test_upgrade_changes_nothing_where_the_schema_is_ahead_and_serves(
    own_database_url: str, own_database: Connection
) -> None:
    """A rollback of a release runs the migrations of the build before."""
    set_revision(own_database, "9999", oldest_build=schema.head_revision())
    before = revision(own_database)
    assert schema.upgrade(own_database_url).startswith("the schema is ahead")
    assert revision(own_database) == before


def test_a_database_of_another_application_is_refused(
    empty_database_url: str,
) -> None:
    with connected(empty_database_url) as other:
        other.execute(text("CREATE TABLE alembic_version (version_num text)"))
        other.execute(text("INSERT INTO alembic_version VALUES ('2f6f9a4c7b1d')"))
        with pytest.raises(SchemaError, match="the schema is ahead: it is at 2f6f9a4c7b1d"):
            schema.check(empty_database_url)


def test_each_migration_names_an_oldest_build_that_never_falls() -> None:
    """A later migration cannot give back what one before it took away."""
    oldest = sorted(schema.oldest_builds().items())
    assert [build for _, build in oldest] == sorted(build for _, build in oldest)
    assert all(build <= revision for revision, build in oldest)


def test_the_oldest_build_is_recorded_with_the_revision(
    own_database_url: str, own_database: Connection
) -> None:
    head = schema.head_revision()
    assert revision(own_database) == (head, schema.oldest_builds()[head])
    downgrade(own_database_url, "0005")
    assert revision(own_database) == ("0005",)


def revision(connection: Connection) -> tuple[str, ...]:
    return tuple(connection.execute(text("SELECT * FROM alembic_version")).one())


def test_a_refused_upgrade_changes_nothing(own_database_url: str, own_database: Connection) -> None:
    """Its tables are those of another build: this one must not add its own to them."""
    own_database.execute(text("DROP TABLE tasks"))
    set_revision(own_database, "9999", oldest_build="9999")
    before = relations(own_database_url)
    with pytest.raises(SchemaError):
        schema.upgrade(own_database_url)
    assert relations(own_database_url) == before
    assert own_database.scalar(text("SELECT version_num FROM alembic_version")) == "9999"


def test_concurrent_upgrades_all_succeed_and_apply_the_migrations_once(
    empty_database_url: str, counted_tables: Callable[[], int]
) -> None:
    """Several replicas of one deployment may start at the same time."""
    with ThreadPoolExecutor(4) as pool:
        upgrades = [pool.submit(schema.upgrade, empty_database_url) for _ in range(4)]
    for upgrade in upgrades:
        upgrade.result()
    schema.check(empty_database_url)
    assert counted_tables() == 1


@pytest.fixture
def counted_tables() -> Iterator[Callable[[], int]]:
    """How often the table `tasks` was made, or tried to be."""
    made: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "CREATE TABLE tasks" in statement:
            made.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    yield lambda: len(made)
    event.remove(Engine, "before_cursor_execute", note)


def test_an_upgrade_waits_for_another_one_under_way(empty_database_url: str) -> None:
    """It has the lock before it looks at the revision, so that it sees what the other one did."""
    with connected(empty_database_url) as other, ThreadPoolExecutor(1) as pool:
        other.execute(text("SELECT pg_advisory_lock(:key)"), {"key": schema._MIGRATION_LOCK})
        upgrade = pool.submit(schema.upgrade, empty_database_url)
        while not other.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")):
            assert not upgrade.done()
        assert relations(empty_database_url) == []
        other.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": schema._MIGRATION_LOCK})
        upgrade.result()
    schema.check(empty_database_url)


def test_an_upgrade_gives_up_where_calls_would_wait_behind_it(
    own_database_url: str, own_database: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A statement that waits for the lock of a table stops all calls on the table."""
    monkeypatch.setattr(schema, "LOCK_LIMIT", "SET lock_timeout = '100ms'")
    downgrade(own_database_url, "0001")
    with create_engine(own_database_url, poolclass=NullPool).begin() as reader:
        reader.execute(text("SELECT count(*) FROM tasks"))
        with pytest.raises(DatabaseUnavailableError, match="lock timeout"):
            schema.upgrade(own_database_url)
    assert own_database.scalar(text("SELECT version_num FROM alembic_version")) == "0001"
    schema.upgrade(own_database_url)
    schema.check(own_database_url)


@pytest.fixture
def nobody_listens() -> Iterator[str]:
    """The URL of a port that is ours and refuses connections."""
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        yield f"postgresql+psycopg2://tasks@127.0.0.1:{unheard.getsockname()[1]}/tasks"


@pytest.mark.parametrize("step", [schema.upgrade, schema.check])
def test_a_database_that_is_away_is_unavailable(
    step: Callable[[str], None], nobody_listens: str
) -> None:
    with pytest.raises(DatabaseUnavailableError):
        step(nobody_listens)
