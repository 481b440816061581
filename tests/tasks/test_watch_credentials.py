"""A watch ends when its token expires, or the key of the token is removed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import jwt
import pytest

from server.settings import Settings
from storage.database import Database
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    CreateTaskRequest,
    WatchTasksRequest,
    WatchTasksResponse,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.credentials import (
    AUDIENCE,
    ISSUER,
    SECRET_KEY,
    KeyServer,
    SigningKey,
    authorised,
    claims,
    key_set,
    running_key_server,
)
from tests.support.errors import fails
from tests.support.service import PATIENCE_SECONDS, await_ready
from tests.support.workers import running_worker

UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
BOOKMARK = WatchTasksResponse.TYPE_BOOKMARK

OLD, NEW = SigningKey("RS256", "old"), SigningKey("ES256", "new")

# A token is taken for 30 seconds after its end, since clocks differ.
LEEWAY_SECONDS = 30

Sign = Callable[..., str]


def sign(**changes: Any) -> str:
    """A token of ann's, signed with SECRET_KEY."""
    return jwt.encode(claims(iss=None, aud=None, **changes), SECRET_KEY, "HS256")


def ending_soon() -> str:
    return sign(exp=int(time.time()) - LEEWAY_SECONDS + 2)


def watch(channel: grpc.Channel, token: str, **request: Any) -> Any:
    stub = TaskServiceStub(authorised(channel, token))
    return stub.WatchTasks(WatchTasksRequest(**request), timeout=PATIENCE_SECONDS)


def create(channel: grpc.Channel, title: str) -> None:
    stub = TaskServiceStub(authorised(channel, sign()))
    stub.CreateTask(CreateTaskRequest(task=Task(title=title)))


@contextmanager
def ends_with_its_credentials() -> Iterator[None]:
    with fails(UNAUTHENTICATED, "CREDENTIALS_EXPIRED") as failure:
        yield
    assert failure.message == "the credentials are no longer valid; resume with new ones"


@pytest.fixture(params=[0.05, 30], ids=["bookmarks", "rare bookmarks"])
def channel(
    request: pytest.FixtureRequest,
    token_settings: Settings,
    database: Database,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[grpc.Channel]:
    monkeypatch.setattr("server.tasks.watches.BOOKMARK_SECONDS", request.param)
    with running_worker(token_settings, database_url) as channel:
        yield channel


def test_a_watch_ends_when_its_token_expires(channel: grpc.Channel) -> None:
    with ends_with_its_credentials():
        for _ in watch(channel, ending_soon()):
            pass


def test_a_watch_with_constant_changes_ends_too(channel: grpc.Channel) -> None:
    answers = watch(channel, ending_soon())
    with ends_with_its_credentials():
        for number, _ in enumerate(answers):
            create(channel, str(number))


def test_a_watch_goes_on_with_a_new_token_where_it_ended(channel: grpc.Channel) -> None:
    """Nothing is lost meanwhile: the token that resumes it is the caller's, not the session's."""
    resume_token = ""
    with ends_with_its_credentials():
        for answer in watch(channel, ending_soon()):
            resume_token = answer.resume_token
    create(channel, "meanwhile")
    resumed = watch(channel, sign(), resume_token=resume_token)
    assert next(answer.task.title for answer in resumed if answer.type != BOOKMARK) == "meanwhile"
    resumed.cancel()


def test_other_watches_of_the_caller_go_on(channel: grpc.Channel) -> None:
    other = watch(channel, sign())
    assert next(other).type == BOOKMARK
    with ends_with_its_credentials():
        for _ in watch(channel, ending_soon()):
            pass
    create(channel, "a task")
    assert next(change.task.title for change in other if change.type != BOOKMARK) == "a task"
    other.cancel()


# --- Keys -----------------------------------------------------------------------------------------


@pytest.fixture
def key_server() -> Iterator[KeyServer]:
    with running_key_server(key_set(OLD, NEW)) as server:
        yield server


@pytest.fixture
def issuers_channel(
    settings: Settings,
    database: Database,
    database_url: str,
    key_server: KeyServer,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[grpc.Channel]:
    monkeypatch.setattr("server.access.jwks.REFRESH_SECONDS", 0.02)
    monkeypatch.setattr("server.tasks.watches.BOOKMARK_SECONDS", 0.05)
    own = {
        "auth_mode": "jwt",
        "algorithm": "RS256,ES256",
        "jwks_url": key_server.url,
        "jwt_issuer": ISSUER,
        "jwt_audience": AUDIENCE,
    }
    with running_worker(settings.model_copy(update=own), database_url) as channel:
        await_ready(channel)
        yield channel


def test_a_watch_ends_when_the_key_of_its_token_is_removed(
    issuers_channel: grpc.Channel, key_server: KeyServer
) -> None:
    old, new = (watch(issuers_channel, key.sign(claims())) for key in (OLD, NEW))
    assert next(old).type == next(new).type == BOOKMARK
    key_server.document = key_set(NEW)
    with ends_with_its_credentials():
        for _ in old:
            pass
    assert next(new).type == BOOKMARK
    new.cancel()


def test_a_watch_stays_while_the_issuer_is_away(
    issuers_channel: grpc.Channel, key_server: KeyServer
) -> None:
    """Keys that were good stay good."""
    answers = watch(issuers_channel, OLD.sign(claims()))
    assert next(answers).type == BOOKMARK
    key_server.status = 503
    asked = len(key_server.paths)
    while len(key_server.paths) < asked + 3:
        assert next(answers).type == BOOKMARK
    assert next(answers).type == BOOKMARK
    answers.cancel()


def test_a_watch_stays_when_other_keys_come(
    issuers_channel: grpc.Channel, key_server: KeyServer
) -> None:
    answers = watch(issuers_channel, OLD.sign(claims()))
    key_server.document = key_set(OLD)
    asked = len(key_server.paths)
    while len(key_server.paths) < asked + 3:
        assert next(answers).type == BOOKMARK
    assert next(answers).type == BOOKMARK
    answers.cancel()
