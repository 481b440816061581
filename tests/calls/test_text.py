"""Text: one normal form, one definition of blank, tags that differ in more than case."""

from __future__ import annotations

import sys
import unicodedata
import uuid
from collections.abc import Callable
from typing import Any

import grpc
import protovalidate
import pytest
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import given
from hypothesis import strategies as st

from buf.validate import validate_pb2
from server.calls.text import INVISIBLE, is_blank
from server.tasks.conversions import distinct_tags
from server.tasks.filters import parse_filter
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    BatchCreateTasksRequest,
    BatchUpdateTasksRequest,
    CreateTaskRequest,
    GetTaskStatsRequest,
    ListTasksRequest,
    PurgeTasksRequest,
    UpdateTaskRequest,
    WatchTasksRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.errors import fails

Create = Callable[..., Task]

INVALID = grpc.StatusCode.INVALID_ARGUMENT
COMPOSED, DECOMPOSED = "Caf\u00e9", "Cafe\u0301"
PRIVATE_USE = "\ue000"
# White space, controls, format characters, variation selectors, and what has no ink.
BLANK = [" ", "\t\n", "\u00a0", "\u2003", "\u000b", "\u0085", "\u200b", "\u202e", "\ufe0f"]
BLANK += ["\u115f", "\u2800", "\u3164", "\uffa0", "\u2800 \u200d", "\U000e0041"]


def found(stub: TaskServiceStub, filter_: str) -> list[str]:
    return [task.id for task in stub.ListTasks(ListTasksRequest(filter=filter_)).tasks]


def quoted(text: str) -> str:
    return '"' + "".join(f"\\{c}" if c in '\\"*' else c for c in text) + '"'


# Blank


def rule(field: FieldDescriptor, name: str) -> str:
    options = field.GetOptions().Extensions[validate_pb2.field]
    rules = [*options.cel, *options.repeated.items.cel]
    return next(rule.expression for rule in rules if rule.id.endswith(name))


@pytest.mark.parametrize(
    "field",
    [
        Task.DESCRIPTOR.fields_by_name["title"],
        Task.DESCRIPTOR.fields_by_name["tags"],
        PurgeTasksRequest.DESCRIPTOR.fields_by_name["filter"],
    ],
    ids=lambda field: field.full_name,
)
def test_the_contract_and_the_parser_list_the_same_invisible_characters(
    field: FieldDescriptor,
) -> None:
    assert rule(field, "not_blank") == f"this.matches('[^{INVISIBLE}]')"


def test_the_contracts_rule_finds_blank_what_the_parser_does() -> None:
    """The characters beside every boundary, and each 17th of the first plane."""
    boundaries = {
        number
        for number in range(1, sys.maxunicode + 1)
        if len({is_blank(chr(n)) for n in range(number - 1, min(number + 2, sys.maxunicode))}) > 1
    }
    surrogates = range(0xD800, 0xE000)
    characters = [chr(n) for n in sorted({*boundaries, *range(0, 0x10000, 17)} - {*surrogates})]
    requests = [CreateTaskRequest(task=Task(title=character)) for character in characters]
    found = protovalidate.collect_violations(BatchCreateTasksRequest(requests=requests))
    blank: set[Any] = {
        violation.proto.field.elements[0].subscript.value  # type: ignore[union-attr]
        for violation in found
        if violation.proto.rule_id == "task.title.not_blank"
    }
    assert blank == {n for n, character in enumerate(characters) if is_blank(character)}


def test_what_unicode_calls_white_space_control_or_format_is_blank() -> None:
    for number in range(sys.maxunicode + 1):
        character = chr(number)
        category = unicodedata.category(character)
        if character.isspace() or category[0] == "Z" or category in {"Cc", "Cf"}:
            assert is_blank(character), hex(number)
        if category == "Co":
            assert not is_blank(character), hex(number)


@pytest.mark.parametrize("text", BLANK, ids=ascii)
def test_a_title_or_tag_without_a_visible_character_is_refused(
    stub: TaskServiceStub, text: str
) -> None:
    with fails(INVALID, "INVALID_REQUEST") as failure:
        stub.CreateTask(CreateTaskRequest(task=Task(title=text, tags=[text])))
    assert failure.violations.keys() == {"task.title", "task.tags[0]"}
    assert failure.message.count("must not be blank") == 2


@pytest.mark.parametrize("text", [PRIVATE_USE, "\u200d\U0001f468", "\u00b7", "\u3000.", "\u0378"])
def test_a_title_of_one_visible_character_is_stored(create_task: Create, text: str) -> None:
    assert create_task(title=text, tags=[text]).title == text


@pytest.mark.parametrize("text", BLANK, ids=ascii)
def test_a_blank_filter_of_a_list_selects_every_task(
    stub: TaskServiceStub, create_task: Create, text: str
) -> None:
    task = create_task()
    assert found(stub, text) == [task.id]


# Normal form


def test_every_text_of_a_task_is_stored_in_one_spelling(create_task: Create) -> None:
    task = create_task(
        title=DECOMPOSED, description=DECOMPOSED, assigned_to=DECOMPOSED, tags=[DECOMPOSED]
    )
    texts = task.title, task.description, task.assigned_to, *task.tags
    assert texts == (COMPOSED,) * 4


def test_two_spellings_of_a_tag_are_one_tag(create_task: Create) -> None:
    assert create_task(tags=[COMPOSED, DECOMPOSED, DECOMPOSED.upper()]).tags == [COMPOSED]


def test_an_update_is_normalised_as_a_creation_is(
    stub: TaskServiceStub, create_task: Create
) -> None:
    update = UpdateTaskRequest(task=Task(id=create_task().id, title=DECOMPOSED))
    assert stub.UpdateTask(update).title == COMPOSED


def test_every_item_of_a_batch_is_normalised(stub: TaskServiceStub) -> None:
    creations = [CreateTaskRequest(task=Task(title=f"{n} {DECOMPOSED}")) for n in range(2)]
    created = stub.BatchCreateTasks(BatchCreateTasksRequest(requests=creations)).tasks
    assert [task.title for task in created] == [f"{n} {COMPOSED}" for n in range(2)]
    updates = [UpdateTaskRequest(task=Task(id=task.id, tags=[DECOMPOSED])) for task in created]
    updated = stub.BatchUpdateTasks(BatchUpdateTasksRequest(requests=updates)).tasks
    assert [task.tags for task in updated] == [[COMPOSED]] * 2


def test_a_length_is_that_of_the_normal_form(stub: TaskServiceStub, create_task: Create) -> None:
    """200 characters that were sent as 400; and U+0958, which becomes two."""
    assert create_task(title="e\u0301" * 200).title == "\u00e9" * 200
    with fails(INVALID, "INVALID_REQUEST"):
        stub.CreateTask(CreateTaskRequest(task=Task(title="\u0958" * 101)))


def test_a_request_in_another_spelling_is_the_same_request(stub: TaskServiceStub) -> None:
    first, second = (
        stub.CreateTask(CreateTaskRequest(task=Task(title=title), request_id=REQUEST_ID))
        for title in (COMPOSED, DECOMPOSED)
    )
    assert first == second


REQUEST_ID = str(uuid.UUID(int=7))


def test_a_page_token_holds_for_its_filter_in_any_spelling(
    stub: TaskServiceStub, create_task: Create
) -> None:
    for _ in range(2):
        create_task(title=COMPOSED)
    request = ListTasksRequest(filter=COMPOSED, page_size=1)
    request.page_token = stub.ListTasks(request).next_page_token
    request.filter = DECOMPOSED
    assert len(stub.ListTasks(request).tasks) == 1


def test_a_resume_token_holds_for_its_filter_in_any_spelling(stub: TaskServiceStub) -> None:
    watch = stub.WatchTasks(WatchTasksRequest(filter=COMPOSED))
    token = next(watch).resume_token
    watch.cancel()
    watch = stub.WatchTasks(WatchTasksRequest(filter=DECOMPOSED, resume_token=token))
    assert next(watch).resume_token
    watch.cancel()


def test_statistics_and_purges_find_every_spelling(
    stub: TaskServiceStub, create_task: Create
) -> None:
    create_task(title=COMPOSED)
    filter_ = f'title = "{DECOMPOSED}"'
    assert stub.GetTaskStats(GetTaskStatsRequest(filter=filter_)).total == 1
    assert stub.PurgeTasks(PurgeTasksRequest(filter=filter_)).purge_count == 0


SPELLINGS = st.sampled_from(["NFC", "NFD"])
# No control characters, no surrogates; what is not normalised on purpose (ﬁ, ²) is among them.
LINES = st.text(
    st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"], codec="utf-8")
    | st.sampled_from(
        "e\u0301\u00e9\ufb01\u00b2\u1e9e\u0130\u017fßµ\u212b\u1100\u1161\u03a3\u03c2"
    ),
    max_size=20,
)


@given(text=LINES, stored=SPELLINGS, asked=SPELLINGS)
def test_what_was_stored_is_found_by_what_was_sent(
    stub: TaskServiceStub, create_task: Create, text: str, stored: Any, asked: Any
) -> None:
    sent = unicodedata.normalize(stored, f"x{text}")
    task = create_task(title=sent, description=sent, assigned_to=sent, tags=[sent])
    value = quoted(unicodedata.normalize(asked, sent))
    for filter_ in (*(f"{field} = {value}" for field in FIELDS), f"tags:{value}"):
        assert task.id in found(stub, filter_), filter_


FIELDS = ("title", "description", "assigned_to")


# Control characters


@pytest.mark.parametrize("character", ["\0", "\t", "\n", "\r", "\x1b", "\x7f", "\x85", "\u2028"])
@pytest.mark.parametrize("field", ["title", "assigned_to", "tags"])
def test_a_text_of_one_line_has_no_control_character(
    stub: TaskServiceStub, field: str, character: str
) -> None:
    text = f"a{character}b"
    value: Any = [text] if field == "tags" else text
    with fails(INVALID, "INVALID_REQUEST") as failure:
        stub.CreateTask(CreateTaskRequest(task=Task(**{"title": "a", field: value})))
    name = "tags[0]" if field == "tags" else field
    assert failure.violations == {f"task.{name}": f"TASK_{field.upper()}_ONE_LINE"}


def test_a_description_may_have_tabs_and_line_feeds(create_task: Create) -> None:
    assert create_task(description="a\tb\n\nc").description == "a\tb\n\nc"


@pytest.mark.parametrize("character", ["\0", "\r", "\x0b", "\x1b", "\x7f", "\x9b"])
def test_a_description_has_no_other_control_character(
    stub: TaskServiceStub, create_task: Create, character: str
) -> None:
    update = UpdateTaskRequest(task=Task(id=create_task().id, description=f"a{character}b"))
    with fails(INVALID, "INVALID_REQUEST") as failure:
        stub.UpdateTask(update)
    reason = "TASK_DESCRIPTION_NO_CONTROL_CHARACTERS"
    assert failure.violations == {"task.description": reason}


# Tags


@pytest.mark.parametrize(
    ("tags", "kept"),
    [
        (["Maße", "Masse"], ["Maße", "Masse"]),
        (["ﬁ", "fi"], ["ﬁ", "fi"]),
        (["\u03c2", "\u03c3"], ["\u03c2", "\u03c3"]),
        (["Billing", "billing", "BILLING"], ["Billing"]),
        (["Übung", "ÜBUNG"], ["Übung"]),
        (["ẞ", "ß"], ["ẞ"]),
        (["İ", "i"], ["İ", "i"]),
    ],
)
def test_tags_are_one_if_they_differ_in_case_only(
    create_task: Create, tags: list[str], kept: list[str]
) -> None:
    assert create_task(tags=tags).tags == kept


@pytest.mark.parametrize("tag", ["billing", "Billing", "BILLING"])
@pytest.mark.parametrize("asked", ["billing", "Billing", "BILLING"])
def test_a_tag_is_found_in_any_case(
    stub: TaskServiceStub, create_task: Create, tag: str, asked: str
) -> None:
    task = create_task(tags=["other", tag])
    create_task(tags=["bill"])
    assert found(stub, f"tags:{asked}") == [task.id]


def test_a_watch_finds_a_tag_in_any_case(stub: TaskServiceStub, create_task: Create) -> None:
    watch = stub.WatchTasks(WatchTasksRequest(filter="tags:übung"))
    next(watch)
    task = create_task(tags=["ÜBUNG"])
    assert next(watch).task.id == task.id
    watch.cancel()


@given(tags=st.lists(st.text(max_size=3), max_size=5))
def test_a_tag_that_was_dropped_is_kept_in_another_case(tags: list[str]) -> None:
    kept = distinct_tags(tags)
    assert {tag.lower() for tag in tags} == {tag.lower() for tag in kept}
    assert distinct_tags(kept) == kept


# A purge


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("filter_", ["", *BLANK], ids=ascii)
def test_a_purge_with_a_blank_filter_is_refused(
    stub: TaskServiceStub, filter_: str, force: bool
) -> None:
    with fails(INVALID, "INVALID_REQUEST") as failure:
        stub.PurgeTasks(PurgeTasksRequest(filter=filter_, force=force))
    assert failure.violations == {"filter": "FILTER_NOT_BLANK"}


def test_a_purge_is_refused_if_its_filter_means_nothing(
    stub: TaskServiceStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the parser and the contract should ever disagree about what that is."""
    parse_filter.cache_clear()
    monkeypatch.setattr("server.tasks.filters.is_blank", lambda _: True)
    try:
        with fails(INVALID, "INVALID_REQUEST") as failure:
            stub.PurgeTasks(PurgeTasksRequest(filter="deleted_at:*", force=True))
    finally:
        parse_filter.cache_clear()
    assert failure.violations == {"filter": "FILTER_NOT_BLANK"}
