"""Watches that resume from a token, and the bookmarks that carry tokens."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from contextlib import suppress

import grpc
import pytest

from storage.database import Database
from storage.events import EventLog
from taskservice.v1.task_service_pb2 import ListTasksRequest, WatchTasksResponse
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.errors import EXPIRED, INVALID, fails
from tests.support.service import wait_until
from tests.support.watching import (
    OF_ANN,
    OF_BOB,
    OpenWatch,
    Serve,
    create,
    delete,
    failure_of,
    joined,
    titles,
    update,
)

NOTHING = dt.timedelta(0)


@pytest.fixture
def history(stub: TaskServiceStub, watch: OpenWatch) -> list[WatchTasksResponse]:
    """The responses to seven changes, after the first bookmark."""
    watching = watch(filter=OF_ANN)
    received = [watching.next()]
    tasks = create(stub, "0", "1", "2", assigned_to="ann")
    create(stub, "of none")
    for task in tasks:
        update(stub, task, title=f"{task.title} again")
    delete(stub, tasks[1])
    return received + watching.changes(7)


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])
def test_every_token_resumes_exactly_after_its_response(
    watch: OpenWatch,
    stub: TaskServiceStub,
    serve: Serve,
    history: list[WatchTasksResponse],
    elsewhere: bool,
) -> None:
    """On any server with the same database and the same key."""
    at = serve() if elsewhere else stub
    (last,) = create(stub, "last", assigned_to="ann")
    for number, response in enumerate(history):
        resumed = watch(at, filter=OF_ANN, resume_token=response.resume_token)
        rest = resumed.changes(len(history) - number - 1)
        assert [(r.type, r.task) for r in rest] == [(r.type, r.task) for r in history[number + 1 :]]
        assert resumed.change().task == last


def test_a_resumed_watch_sends_a_bookmark_after_the_missed_changes(
    watch: OpenWatch, history: list[WatchTasksResponse]
) -> None:
    resumed = watch(filter=OF_ANN, resume_token=history[3].resume_token)
    resumed.changes(4)
    resumed.bookmark()


def _flipped(token: str, place: int) -> str:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    other = alphabet[alphabet.index(token[place]) ^ 1]
    return token[:place] + other + token[place:][1:]


@pytest.mark.parametrize(
    "spoil",
    [
        *(lambda token, n=n: _flipped(token, n) for n in range(0, 40, 3)),
        lambda token: _flipped(token, len(token) - 1),
        lambda token: token[:-1],
        lambda token: token + "A",
        lambda _: "garbage",
        lambda _: "\N{SNOWMAN}",
        lambda _: "A" * 4096,
    ],
)
def test_a_changed_token_is_refused(watch: OpenWatch, spoil: Callable[[str], str]) -> None:
    token = spoil(watch().bookmark())
    failure = failure_of(INVALID, "INVALID_REQUEST", watch(resume_token=token))
    assert failure.violations == {"resume_token": "RESUME_TOKEN_INVALID"}


def test_a_token_of_another_filter_is_refused(watch: OpenWatch) -> None:
    token = watch(filter=OF_ANN).bookmark()
    for filter_ in ("", OF_BOB, f"{OF_ANN} "):
        other = watch(filter=filter_, resume_token=token)
        failure = failure_of(INVALID, "INVALID_REQUEST", other)
        assert failure.violations == {"resume_token": "RESUME_TOKEN_INVALID"}


def test_a_page_token_is_no_resume_token(stub: TaskServiceStub, watch: OpenWatch) -> None:
    create(stub, "one", "two")
    token = stub.ListTasks(ListTasksRequest(page_size=1)).next_page_token
    failure = failure_of(INVALID, "INVALID_REQUEST", watch(resume_token=token))
    assert failure.violations == {"resume_token": "RESUME_TOKEN_INVALID"}


def test_a_resume_token_is_no_page_token(stub: TaskServiceStub, watch: OpenWatch) -> None:
    token = watch().bookmark()
    with fails(INVALID, "INVALID_REQUEST") as failure:
        stub.ListTasks(ListTasksRequest(page_token=token))
    assert failure.violations == {"page_token": "PAGE_TOKEN_INVALID"}


def test_a_watch_either_resumes_or_begins_anew(watch: OpenWatch) -> None:
    token = watch().bookmark()
    failure_of(INVALID, "INVALID_REQUEST", watch(resume_token=token, send_initial_tasks=True))


def test_a_filter_that_cannot_be_read_is_refused(watch: OpenWatch) -> None:
    failure = failure_of(INVALID, "INVALID_REQUEST", watch(filter="(("))
    assert set(failure.violations) == {"filter"}


def test_a_token_whose_future_is_no_longer_kept_has_expired(
    stub: TaskServiceStub, watch: OpenWatch, database: Database
) -> None:
    watching = watch()
    tokens = [watching.bookmark()]
    create(stub, "one", "two")
    tokens += [response.resume_token for response in watching.changes(2)]
    EventLog(database).trim(older_than=NOTHING)
    for token in tokens[:2]:
        failure_of(EXPIRED, "RESUME_TOKEN_EXPIRED", watch(resume_token=token))
    watch(resume_token=tokens[2]).bookmark()


def test_a_token_outlives_the_removal_of_earlier_events(
    stub: TaskServiceStub, watch: OpenWatch, database: Database
) -> None:
    watching = joined(watch)
    create(stub, "one")
    token = watching.change().resume_token
    EventLog(database).trim(older_than=NOTHING)
    create(stub, "two")
    assert titles(watch(resume_token=token).changes(1)) == ["two"]
    assert titles(watching.changes(1)) == ["two"]


def test_bookmarks_come_while_nothing_happens(
    serve: Serve, watch: OpenWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.tasks.watches.BOOKMARK_SECONDS", 0.05)
    watching = watch(serve())
    tokens = [watching.bookmark() for _ in range(3)]
    assert len(set(tokens)) == 3


def test_bookmarks_move_past_changes_that_do_not_match(
    serve: Serve, watch: OpenWatch, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the token of a watch that seldom matches does not expire."""
    monkeypatch.setattr("server.tasks.watches.BOOKMARK_SECONDS", 0.05)
    stub = serve()
    watching, everything = joined(watch, stub, filter=OF_ANN), joined(watch, stub)
    create(stub, "of none")
    everything.change()  # Both are served from one read.
    EventLog(database).trim(older_than=NOTHING)

    def resumes() -> str | None:
        resumed = watch(stub, filter=OF_ANN, resume_token=watching.bookmark())
        with suppress(grpc.RpcError):
            return resumed.bookmark()
        return None

    wait_until(resumes, "a bookmark behind the change")
