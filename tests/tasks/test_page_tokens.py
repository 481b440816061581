"""Page and resume tokens over the wire: only unchanged, for their principal and their request."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import grpc
import pytest
from pydantic import SecretStr

from server.settings import Settings
from storage.database import Database
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    BatchCreateTasksRequest,
    CreateTaskRequest,
    ListTaskEventsRequest,
    ListTasksRequest,
    UpdateTaskRequest,
    WatchTasksRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.access import ADMIN, READ, WRITE, StubOf, counted_statements
from tests.support.credentials import SECRET_KEY
from tests.support.errors import fails
from tests.support.workers import running_worker

INVALID = grpc.StatusCode.INVALID_ARGUMENT
FILTER = 'title != "x"'


class Token(NamedTuple):
    """A token of ann's, and a call that continues with a token."""

    text: str
    field: str
    go_on: Callable[..., Any]


@pytest.fixture
def ann(stub_of: StubOf) -> TaskServiceStub:
    return stub_of("ann", READ, WRITE)


@pytest.fixture
def tasks(ann: TaskServiceStub) -> list[Task]:
    """Two tasks, the first of which was changed since."""
    creations = [CreateTaskRequest(task=Task(title=title)) for title in "ab"]
    created = ann.BatchCreateTasks(BatchCreateTasksRequest(requests=creations)).tasks
    ann.UpdateTask(UpdateTaskRequest(task=Task(id=created[0].id, title="changed")))
    return list(created)


def list_tasks(stub: TaskServiceStub, token: str = "", filter_: str = FILTER, **_: str) -> Any:
    return stub.ListTasks(ListTasksRequest(filter=filter_, page_size=1, page_token=token))


def list_events(stub: TaskServiceStub, token: str = "", *, task_id: str, **_: str) -> Any:
    return stub.ListTaskEvents(
        ListTaskEventsRequest(task_id=task_id, page_size=1, page_token=token)
    )


def watch_tasks(stub: TaskServiceStub, token: str = "", filter_: str = FILTER, **_: str) -> Any:
    """The first answer of a watch, which is ended."""
    watch: Any = stub.WatchTasks(
        WatchTasksRequest(filter=filter_, resume_token=token, send_initial_tasks=not token)
    )
    try:
        return next(answer for answer in watch if answer.resume_token)
    finally:
        watch.cancel()


@pytest.fixture(params=["ListTasks", "ListTaskEvents", "WatchTasks"])
def token(request: pytest.FixtureRequest, ann: TaskServiceStub, tasks: list[Task]) -> Token:
    match request.param:
        case "ListTasks":
            return Token(list_tasks(ann).next_page_token, "page_token", list_tasks)
        case "ListTaskEvents":

            def go_on(
                stub: TaskServiceStub, token: str, task_id: str = tasks[0].id, **_: str
            ) -> Any:
                return list_events(stub, token, task_id=task_id)

            text = list_events(ann, task_id=tasks[0].id).next_page_token
            return Token(text, "page_token", go_on)
        case _:
            return Token(watch_tasks(ann).resume_token, "resume_token", watch_tasks)


def refuse(token: Token, stub: TaskServiceStub, text: str, **other: str) -> None:
    """The call must fail before it reads the database."""
    with counted_statements() as statements, fails(INVALID, "INVALID_REQUEST") as failure:
        token.go_on(stub, text, **other)
    assert list(failure.violations) == [token.field]
    assert statements == []


def test_a_token_is_valid_for_its_principal(ann: TaskServiceStub, token: Token) -> None:
    assert token.go_on(ann, token.text)


def flipped(content: bytes, bits: int = 8) -> Iterator[bytes]:
    for place in range(len(content)):
        for bit in range(bits):
            changed = content[place] ^ 1 << bit
            yield content[:place] + bytes([changed]) + content[place + 1 :]


def test_a_token_with_any_bit_flipped_is_refused(ann: TaskServiceStub, token: Token) -> None:
    """Of what it holds, and of its text: seven of a character's bits, so that it can be sent."""
    sealed = base64.urlsafe_b64decode(token.text + "=" * (-len(token.text) % 4))
    for changed in flipped(sealed):
        refuse(token, ann, base64.urlsafe_b64encode(changed).decode().rstrip("="))
    for changed in flipped(token.text.encode(), 7):
        refuse(token, ann, changed.decode())


def test_another_callers_token_is_refused(stub_of: StubOf, token: Token) -> None:
    """Whatever its scopes are."""
    refuse(token, stub_of("bob", READ, WRITE, ADMIN), token.text)


def test_the_token_of_another_request_is_refused(
    ann: TaskServiceStub, tasks: list[Task], token: Token
) -> None:
    refuse(token, ann, token.text, filter_='title != "y"', task_id=tasks[1].id)


def test_a_token_is_refused_once_the_secret_key_is_another(
    stub_of: StubOf, token_settings: Settings, database_url: str, token: Token
) -> None:
    """The caller is still the same."""
    key = SECRET_KEY[::-1]
    own = token_settings.model_copy(update={"secret_key": SecretStr(key)})
    with running_worker(own, database_url) as channel:
        refuse(token, stub_of("ann", READ, at=(channel, key)), token.text)


@pytest.fixture
def rotated_channel(
    token_settings: Settings, database_url: str, database: Database
) -> Iterator[grpc.Channel]:
    """A channel to a service whose key is another, and was SECRET_KEY before."""
    keys = {
        "secret_key": SecretStr(SECRET_KEY[::-1]),
        "secret_key_previous": SecretStr(SECRET_KEY),
    }
    with running_worker(token_settings.model_copy(update=keys), database_url) as channel:
        yield channel


@pytest.mark.parametrize("key", [SECRET_KEY, SECRET_KEY[::-1]], ids=["before", "now"])
def test_a_token_stays_good_while_its_key_is_the_one_from_before(
    stub_of: StubOf, rotated_channel: grpc.Channel, token: Token, key: str
) -> None:
    """The caller's own token may be signed with either."""
    assert token.go_on(stub_of("ann", READ, at=(rotated_channel, key)), token.text)


def test_a_new_token_is_made_with_the_new_key(
    stub_of: StubOf, rotated_channel: grpc.Channel, tasks: list[Task]
) -> None:
    """So that the old key can be given up once old tokens are gone."""
    rotated = stub_of("ann", READ, at=(rotated_channel, SECRET_KEY))
    made = list_tasks(rotated).next_page_token
    assert list_tasks(rotated, made)
    with fails(INVALID, "INVALID_REQUEST"):
        list_tasks(stub_of("ann", READ), made)


def test_a_caller_whose_token_is_of_neither_key_is_refused(
    stub_of: StubOf, rotated_channel: grpc.Channel
) -> None:
    with fails(grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"):
        list_tasks(stub_of("ann", READ, at=(rotated_channel, "a key that the service never had")))


def test_a_token_from_before_the_rotation_is_bound_to_its_caller(
    stub_of: StubOf, rotated_channel: grpc.Channel, token: Token
) -> None:
    refuse(token, stub_of("bob", READ, at=(rotated_channel, SECRET_KEY)), token.text)
