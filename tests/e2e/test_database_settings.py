"""A database that is named, set up or reached in another way than the usual one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
from sqlalchemy import make_url

from storage import schema
from storage.embedded import EmbeddedPostgres
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    CreateTaskRequest,
    GetTaskRequest,
    ListTaskEventsRequest,
    WatchTasksRequest,
)
from tests.support.postgres import execute
from tests.support.service import PATIENCE_SECONDS, ServiceProcess, await_ready, run_command

Start = Callable[..., ServiceProcess]

SERVED = {
    "ENVIRONMENT": "staging",
    "AUTH_MODE": "none",
    "TLS_TERMINATED_UPSTREAM": "true",
    "SECRET_KEY": "0123456789abcdef0123456789abcdef",
    "WORKERS": "1",
}
# PostgreSQL 18's own provider of locales knows UTF8 only.
LOCALE_C = "TEMPLATE template0 LOCALE_PROVIDER libc LOCALE 'C'"


def with_query(url: str, **query: str) -> str:
    return make_url(url).update_query_dict(query).render_as_string(hide_password=False)


@contextmanager
def database_made_with(postgres_url: str, name: str, options: str) -> Iterator[str]:
    execute(postgres_url, f"CREATE DATABASE {name} {options}")
    try:
        yield make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
    finally:
        execute(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


# --- Options --------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["the URL", "PGOPTIONS"])
def test_migrate_and_serve_use_the_schema_that_options_name(
    tmp_path: Path, empty_database_url: str, start_service: Start, by: str
) -> None:
    execute(empty_database_url, "CREATE SCHEMA app")
    option = "-csearch_path=app"
    settings = (
        {"DATABASE_URL": with_query(empty_database_url, options=option, application_name="mine")}
        if by == "the URL"
        else {"DATABASE_URL": empty_database_url, "PGOPTIONS": option, "PGAPPNAME": "mine"}
    )
    assert run_command(tmp_path, "migrate", program=(), **settings).returncode == 0
    service = start_service(**settings)
    await_ready(service.channel())
    service.stub().CreateTask(CreateTaskRequest(task=Task(title="a task")))
    assert execute(empty_database_url, "SELECT count(*) FROM app.tasks") == 1
    named = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'mine'"
    assert execute(empty_database_url, named) > 0


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["primary first", "primary last"])
def test_a_url_of_several_hosts_finds_the_one_that_takes_writes(
    tmp_path: Path, start_service: Start, order: tuple[int, int]
) -> None:
    """Of two real servers, of which one is read-only."""
    with (
        EmbeddedPostgres(tmp_path / "primary", settings={"fsync": "off"}) as primary,
        EmbeddedPostgres(
            tmp_path / "other", settings={"default_transaction_read_only": "on"}
        ) as other,
    ):
        folders = [str(make_url(server.url).query["host"]) for server in (primary, other)]
        hosts = ",".join(f"{quote(folders[n], safe='')}:5432" for n in order)
        url = f"postgresql://tasks@{hosts}/tasks?target_session_attrs=read-write"
        assert run_command(tmp_path, "migrate", DATABASE_URL=url).returncode == 0
        service = start_service(DATABASE_URL=url)
        service.stub().CreateTask(CreateTaskRequest(task=Task(title="a task")))
        assert execute(primary.url, "SELECT count(*) FROM tasks") == 1


def test_a_url_of_several_hosts_passes_over_one_that_is_dead(
    tmp_path: Path, start_service: Start
) -> None:
    with EmbeddedPostgres(tmp_path / "primary", settings={"fsync": "off"}) as primary:
        folder = quote(str(make_url(primary.url).query["host"]), safe="")
        url = f"postgresql://tasks@127.0.0.1:1,{folder}/tasks?target_session_attrs=read-write"
        assert run_command(tmp_path, "migrate", DATABASE_URL=url).returncode == 0
        await_ready(start_service(DATABASE_URL=url).channel())


# --- Encodings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["migrate", "serve"])
@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_that_is_not_utf8_is_refused_in_a_line(
    tmp_path: Path, postgres_url: str, command: str, encoding: str
) -> None:
    options = f"ENCODING '{encoding}' {LOCALE_C}"
    with database_made_with(postgres_url, f"in_{encoding.lower()}", options) as url:
        done = run_command(tmp_path, command, program=(), **SERVED | {"DATABASE_URL": url})
    assert done.returncode == 1
    last = done.stdout.splitlines()[-1]
    assert f"the database's encoding is {encoding} and must be UTF8" in last
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "WIN1252"])
def test_the_encoding_of_the_environment_has_no_effect(
    own_database_url: str, start_service: Start, encoding: str
) -> None:
    service = start_service(DATABASE_URL=own_database_url, PGCLIENTENCODING=encoding)
    title = "Übung \u2713 \u4f1a\u8b70"
    task = service.stub().CreateTask(CreateTaskRequest(task=Task(title=title)))
    assert service.stub().GetTask(GetTaskRequest(id=task.id)).title == title


def test_a_locale_that_folds_ascii_only_is_warned_of_once(
    postgres_url: str, start_service: Start
) -> None:
    with database_made_with(postgres_url, "folds_ascii", f"ENCODING 'UTF8' {LOCALE_C}") as url:
        schema.upgrade(url)
        service = start_service(**SERVED | {"DATABASE_URL": url, "WORKERS": "2"})
        await_ready(service.channel())
        service.stop()
        assert service.log.count("knows the case of ASCII letters only") == 1


def test_a_locale_that_folds_all_letters_is_no_reason_to_warn(
    own_database_url: str, start_service: Start
) -> None:
    service = start_service(**SERVED | {"DATABASE_URL": own_database_url})
    await_ready(service.channel())
    assert '"warning"' not in service.log


# --- Time zones -----------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["PGTZ", "the database", "options"])
def test_the_last_moment_of_the_calendar_is_read_in_any_time_zone(
    own_database_url: str, start_service: Start, by: str
) -> None:
    url = own_database_url
    zone = "Asia/Tokyo"
    if by == "the database":
        execute(url, f"ALTER DATABASE {make_url(url).database} SET timezone = '{zone}'")
    if by == "options":
        url = with_query(url, options=f"-ctimezone={zone}")
    service = start_service(DATABASE_URL=url, **({"PGTZ": zone} if by == "PGTZ" else {}))
    stub = service.stub()
    watch = stub.WatchTasks(WatchTasksRequest(), timeout=PATIENCE_SECONDS)
    next(iter(watch))
    task = Task(title="for ever")
    task.due_date.FromJsonString("9999-12-31T23:59:59Z")
    task = stub.CreateTask(CreateTaskRequest(task=task))
    assert stub.GetTask(GetTaskRequest(id=task.id)) == task
    assert len(stub.ListTaskEvents(ListTaskEventsRequest(task_id=task.id)).events) == 1
    assert next(iter(watch)).task == task
    watch.cancel()


# --- How many connections -------------------------------------------------------------------------


def warned(service: ServiceProcess, wanted: int, most: int) -> bool:
    """Whether it warned once, with these numbers, when it serves."""
    service.await_log("serving")
    line = f"the workers may open {wanted} connections and the database takes {most}"
    return service.log.count(line) == 1


def test_workers_whose_pools_do_not_fit_are_warned_of_with_the_numbers(
    own_database_url: str, start_service: Start
) -> None:
    """Each has 13 and 10 connections in its pool, and one that listens."""
    service = start_service(**SERVED | {"DATABASE_URL": own_database_url, "WORKERS": "8"})
    assert warned(service, 8 * 24, 97)


def test_a_limit_of_the_database_is_one_of_its_connections(
    own_database_url: str, start_service: Start
) -> None:
    execute(
        own_database_url,
        f"ALTER DATABASE {make_url(own_database_url).database} CONNECTION LIMIT 20",
    )
    assert warned(start_service(**SERVED | {"DATABASE_URL": own_database_url}), 24, 20)


def test_a_limit_of_the_role_is_one_of_its_connections(
    own_database_url: str, start_service: Start
) -> None:
    name = make_url(own_database_url).database
    role = f"CREATE ROLE {name} LOGIN SUPERUSER PASSWORD '{name}' CONNECTION LIMIT 20"
    execute(own_database_url, role)
    url = make_url(own_database_url).set(username=name, password=name)
    service = start_service(**SERVED | {"DATABASE_URL": url.render_as_string(hide_password=False)})
    assert warned(service, 24, 20)
    service.stop()
    execute(own_database_url, f"DROP ROLE {name}")


def test_the_pools_of_workers_that_fit_are_no_reason_to_warn(
    own_database_url: str, start_service: Start
) -> None:
    service = start_service(**SERVED | {"DATABASE_URL": own_database_url, "WORKERS": "4"})
    service.await_log("serving")
    assert "the workers may open" not in service.log
