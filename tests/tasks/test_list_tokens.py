"""Page tokens of a list: a token opens only unchanged, for the same request and key."""

from __future__ import annotations

import base64
import datetime as dt
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.settings import Settings
from server.tasks.page_tokens import Tokens
from server.tasks.validation import FieldError
from storage.database import Database
from taskservice.v1.task_service_pb2 import ListTasksRequest
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.errors import fails
from tests.support.pages import TODAY, ids, store, walk
from tests.support.workers import running_worker


@pytest.fixture
def request_(stub: TaskServiceStub, database: Database) -> ListTasksRequest:
    """Request the second page of a list."""
    store(database, [{}, {}, {}])
    request = ListTasksRequest(filter="title:task", order_by="priority desc, due_date", page_size=1)
    request.page_token = stub.ListTasks(request).next_page_token
    return request


def refused(stub: TaskServiceStub, request: ListTasksRequest) -> bool:
    with fails(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST") as failure:
        stub.ListTasks(request)
    return failure.violations == {"page_token": "PAGE_TOKEN_INVALID"}


def test_a_token_may_be_used_again(stub: TaskServiceStub, request_: ListTasksRequest) -> None:
    """A client that lost the answer requests the same page again."""
    assert ids(stub.ListTasks(request_)) == ids(stub.ListTasks(request_))


@pytest.mark.parametrize(
    "others",
    [
        {"filter": ""},
        {"filter": "title:task "},
        {"filter": "title:a"},
        {"order_by": ""},
        {"order_by": "priority desc, due_date desc"},
        {"order_by": "priority desc, created_at"},
        {"show_deleted": True},
    ],
)
def test_a_token_belongs_to_its_request(
    stub: TaskServiceStub, request_: ListTasksRequest, others: dict[str, str | bool]
) -> None:
    """With another filter or order its position would differ, and tasks would be skipped."""
    for field, value in others.items():
        setattr(request_, field, value)
    assert refused(stub, request_)


def test_a_token_with_any_character_changed_is_refused(
    stub: TaskServiceStub, request_: ListTasksRequest
) -> None:
    token = request_.page_token
    for place, character in enumerate(token):
        changed = "A" if character != "A" else "B"
        request_.page_token = token[:place] + changed + token[place + 1 :]
        assert refused(stub, request_), place


def test_a_token_that_was_cut_is_refused(stub: TaskServiceStub, request_: ListTasksRequest) -> None:
    token = request_.page_token
    for length in range(1, len(token)):
        request_.page_token = token[:length]
        assert refused(stub, request_), length


@pytest.mark.parametrize("spelling", ["{}=", "{}==", " {}", "{}\n", "{}A", "{0}{0}", "{}é"])
def test_a_token_has_one_spelling(
    stub: TaskServiceStub, request_: ListTasksRequest, spelling: str
) -> None:
    request_.page_token = spelling.format(request_.page_token)
    assert refused(stub, request_)


@pytest.mark.parametrize("token", ["x", "1", "AAAA", "e30", "\0", "😀", "A" * 4096])
def test_what_never_was_a_token_is_refused(
    stub: TaskServiceStub, request_: ListTasksRequest, token: str
) -> None:
    request_.page_token = token
    assert refused(stub, request_)


def test_a_token_is_good_for_every_process_with_the_same_key(
    request_: ListTasksRequest, settings: Settings, database_url: str
) -> None:
    """The next page may come from another process or pod, or after a restart."""
    with running_worker(settings, database_url) as channel:
        assert TaskServiceStub(channel).ListTasks(request_).tasks


def test_a_token_of_another_key_is_refused(
    request_: ListTasksRequest, settings: Settings, database_url: str, tmp_path: Path
) -> None:
    others = settings.model_copy(update={"data_dir": tmp_path})
    with running_worker(others, database_url) as channel:
        assert refused(TaskServiceStub(channel), request_)


@pytest.mark.parametrize("character", ["😀", "\x01", "\\", "é"])
def test_the_token_of_the_longest_texts_is_accepted(
    stub: TaskServiceStub, database: Database, character: str
) -> None:
    """It holds the place, so that long titles make long tokens; the contract allows 4096."""
    longest = {"title": character * 199 + "a", "assigned_to": character * 200}
    store(database, [longest | {"due_date": TODAY}] * 3)
    request = ListTasksRequest(order_by="title, assigned_to, due_date", page_size=1)
    assert len(walk(stub, request)) == 3


CURSORS = st.lists(
    st.none()
    | st.integers(-(2**31), 2**31)
    | st.text(max_size=30)
    | st.datetimes(timezones=st.just(dt.UTC)),
    max_size=6,
).map(tuple)

BINDINGS = st.lists(st.text(max_size=10) | st.booleans(), max_size=4).map(tuple)


@given(cursor=CURSORS, binding=BINDINGS)
def test_a_place_survives_its_token(
    cursor: tuple[object, ...], binding: tuple[object, ...]
) -> None:
    tokens = Tokens([b"key"], "page")
    assert tokens.open(tokens.seal(cursor, binding), binding) == cursor  # type: ignore[arg-type]


@given(binding=BINDINGS, other=BINDINGS)
def test_a_token_opens_with_its_own_binding_only(
    binding: tuple[object, ...], other: tuple[object, ...]
) -> None:
    if binding == other:
        return
    tokens = Tokens([b"key"], "page")
    with pytest.raises(FieldError):
        tokens.open(tokens.seal(("a",), binding), other)


def test_a_token_is_of_one_purpose() -> None:
    """Where a list goes on is not where a stream does."""
    token = Tokens([b"key"], "page").seal(("a",), ("filter",))
    with pytest.raises(FieldError) as refused:
        Tokens([b"key"], "resume").open(token, ("filter",))
    assert refused.value.reason == "RESUME_TOKEN_INVALID"


def test_a_token_with_any_bit_changed_does_not_open() -> None:
    tokens = Tokens([b"key"], "page")
    sealed = base64.urlsafe_b64decode(tokens.seal(("a title", TODAY), ("filter",)) + "==")
    for bit in range(len(sealed) * 8):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FieldError):
            tokens.open(base64.urlsafe_b64encode(changed).decode().rstrip("="), ("filter",))


def test_a_token_does_not_show_what_it_holds() -> None:
    """Clients must not come to rely on it, nor read the title of a task they cannot see."""
    token = Tokens([b"key"], "page").seal(("a title",), ("filter",))
    assert b"title" not in base64.urlsafe_b64decode(token + "==")


def test_no_two_tokens_of_a_place_are_alike() -> None:
    """A repeated nonce breaks AES-GCM."""
    tokens = Tokens([b"key"], "page")
    assert len({tokens.seal(("a",), ("filter",)) for _ in range(100)}) == 100
