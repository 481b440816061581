"""Searches: words, phrases, prefixes, scripts without spaces, and what a search may cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import grpc
import pytest

from server.tasks.filters import MAX_SEARCHES, MAX_WATCH_SEARCHES
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    GetTaskStatsRequest,
    ListTasksRequest,
    PurgeTasksRequest,
    WatchTasksRequest,
    WatchTasksResponse,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.errors import fails

Create = Callable[..., Task]

INVALID = grpc.StatusCode.INVALID_ARGUMENT


def found(stub: TaskServiceStub, filter_: str) -> list[str]:
    return [task.title for task in stub.ListTasks(ListTasksRequest(filter=filter_)).tasks]


# Words


@pytest.mark.parametrize(
    ("title", "words"),
    [
        ("run build/deploy now", ["build", "deploy", "build/deploy", "deploy now"]),
        ("see example.com", ["example", "com", "example.com", "title:example.com"]),
        ("ask ann@example.com", ["ann", "example", "ann@example.com", "ann@example", "@ann"]),
        ("due 2026-01-31", ["2026", "01", "31", "2026-01-31", "01-31", "2026-01*"]),
        ("call foo_bar", ["foo", "bar", "foo_bar", '"call foo"']),
        ("https://a.example/b?c=d&e=%20f#g", ["a", "b", "c", "d", "e", "g", "a.example"]),
        ("/usr/lib/x-y.tar.gz", ["usr", "lib", "y", "tar.gz", "x-y"]),
        ("v1.2.3-rc4 +5 -6", ["v1", "2", "rc4", "5", '"6"', "v1.2.3"]),
        ("a&amp;b <i>c</i>", ["amp", "a&amp", "i", "c"]),
        ("état—«Übung»…fin", ["état", "ÜBUNG", "fin", '"état übung"']),
        ("can't", ["can", "can't", "t"]),
    ],
)
def test_a_text_is_cut_at_all_but_letters_and_digits(
    stub: TaskServiceStub, create_task: Create, title: str, words: list[str]
) -> None:
    create_task(title="another task", description="nothing")
    create_task(title=title)
    for word in (word if ":" in word or word[0] == '"' else f'"{word}"' for word in words):
        assert found(stub, word) == [title], word


@pytest.mark.parametrize("filter_", ["deploy/build", "uild", "com.example", "2026-31", "foobar"])
def test_parts_in_another_order_or_half_words_are_not_found(
    stub: TaskServiceStub, create_task: Create, filter_: str
) -> None:
    create_task(title="build/deploy example.com 2026-01-31 foo_bar")
    assert found(stub, filter_) == []


# Phrases


@pytest.mark.parametrize("filter_", ['"the invoice"', '"invoice now"', "the.invoice"])
def test_a_phrase_spans_no_title_and_description(
    stub: TaskServiceStub, create_task: Create, filter_: str
) -> None:
    create_task(title="pay the", description="invoice")
    create_task(title="invoice", description="now")
    assert found(stub, filter_) == []


@pytest.mark.parametrize(
    ("filter_", "titles"),
    [
        ('"pay the"', ["pay the", "other"]),
        ('title:"pay the"', ["pay the"]),
        ('description:"pay the"', ["other"]),
        ("title:invoice", []),
        ("description:invoice", ["pay the", "other"]),
        ('description:"the invoice"', ["other"]),
        ("title:pa*", ["pay the"]),
        ("description:pa*", ["other"]),
        ("title:p* description:inv*", ["pay the"]),
    ],
)
def test_a_search_of_a_field_looks_at_no_other(
    stub: TaskServiceStub, create_task: Create, filter_: str, titles: list[str]
) -> None:
    create_task(title="other", description="pay the invoice")
    create_task(title="pay the", description="invoice")
    assert found(stub, filter_) == titles


# Prefixes


@pytest.mark.parametrize(
    "filter_",
    ["Send*", "send*", "s*", '"Send the inv*"', "title:Send*", '"pay send*"', "build/dep*", "-x*"],
)
def test_a_star_behind_a_word_finds_what_begins_with_it(
    stub: TaskServiceStub, create_task: Create, filter_: str
) -> None:
    create_task(title="pay sending the invoices", description="Send the invoices; build/deploy")
    assert len(found(stub, filter_)) == 1


@pytest.mark.parametrize("filter_", ['"Send inv*"', "nding*", '"the send*"', "-Send*", '"Sen\\*"'])
def test_a_prefix_is_that_of_the_last_word(
    stub: TaskServiceStub, create_task: Create, filter_: str
) -> None:
    create_task(title="Send the invoices")
    assert found(stub, filter_) == []


# Scripts without spaces

SPACELESS = [
    ("明日の会議", ["会議", "明日", "会", "明日の会議", "title:会議", "明日の*"], ["議会", "昨日"]),
    ("東京タワーでランチ", ["ランチ", "タワー", "東京"], ["ランナー", "京東"]),
    ("Q3会議report", ["会議", "q3", "report", "Q3会議"], ["3会", "eport"]),
    ("กำลังทำงาน", ["ทำงาน", "กำลัง"], ["ทานงำ"]),
    ("ຂ້ອຍເຮັດວຽກ", ["ເຮັດ"], ["ດັຮເ"]),
    ("အလုပ်လုပ်", ["လုပ်"], ["ပုလ်"]),
    ("ខ្ញុំធ្វើការ", ["ធ្វើ", "ការ"], ["រកា"]),
    ("회의 준비", ["회의", "준비", "회*"], ["의"]),
]


@pytest.mark.parametrize(("title", "words", "others"), SPACELESS)
def test_a_script_without_spaces_is_found_by_its_parts(
    stub: TaskServiceStub, create_task: Create, title: str, words: list[str], others: list[str]
) -> None:
    create_task(title=title)
    assert {word: found(stub, word) for word in words} == {word: [title] for word in words}
    assert {word: found(stub, word) for word in others} == {word: [] for word in others}


# What has changed is searched as what is stored


@pytest.fixture
def watch_of(stub: TaskServiceStub) -> Iterator[Callable[[str], Iterator[WatchTasksResponse]]]:
    """Opens a watch with this filter, which has caught up."""
    watches = []

    def open_watch(filter_: str) -> Iterator[WatchTasksResponse]:
        watch = stub.WatchTasks(WatchTasksRequest(filter=filter_))
        watches.append(watch)
        assert next(watch).type == WatchTasksResponse.TYPE_BOOKMARK
        return watch

    yield open_watch
    for watch in watches:
        watch.cancel()


@pytest.mark.parametrize(
    "filter_", ["example", '"明日"', "title:exa*", '-"bob ann"', "description:b*"]
)
def test_a_watch_finds_the_words_that_a_list_finds(
    stub: TaskServiceStub,
    create_task: Create,
    watch_of: Callable[[str], Iterator[WatchTasksResponse]],
    filter_: str,
) -> None:
    watch = watch_of(filter_)
    create_task(title="ann", description="ann")
    task = create_task(title="example.com 明日の会議 bob", description="build")
    found = next(watch).task
    if found.title == "ann":  # Matches the negated search too.
        found = next(watch).task
    assert found.id == task.id


# What a search may cost


@pytest.mark.parametrize(
    "term", ["q{}", "-q{}", "-title:q{}", "NOT description:q{}", "(q{} OR id:*)"]
)
def test_a_filter_searches_a_limited_number_of_times(stub: TaskServiceStub, term: str) -> None:
    at_most = " ".join(term.format(n) for n in range(MAX_SEARCHES))
    more = f"{at_most} {term.format('x')}"
    stub.ListTasks(ListTasksRequest(filter=at_most))
    calls: list[Callable[[], object]] = [
        lambda: stub.ListTasks(ListTasksRequest(filter=more)),
        lambda: stub.GetTaskStats(GetTaskStatsRequest(filter=more)),
        lambda: stub.PurgeTasks(PurgeTasksRequest(filter=more)),
    ]
    for call in calls:
        with fails(INVALID, "INVALID_REQUEST") as failure:
            call()
        assert failure.violations == {"filter": "FILTER_TOO_COSTLY"}
        assert f"more than {MAX_SEARCHES} terms that search for words" in failure.message


def test_searches_are_counted_across_groups(stub: TaskServiceStub) -> None:
    half = " OR ".join(f"q{n}" for n in range(MAX_SEARCHES // 2))
    stub.ListTasks(ListTasksRequest(filter=f"({half}) AND -({half})"))
    with fails(INVALID, "INVALID_REQUEST"):
        stub.ListTasks(ListTasksRequest(filter=f"({half}) AND -({half} OR title:x)"))


def test_what_searches_for_no_words_is_not_counted(stub: TaskServiceStub) -> None:
    stub.ListTasks(ListTasksRequest(filter=" ".join(f"-tags:t{n}" for n in range(50))))


def test_a_watch_searches_fewer_times_than_a_list(stub: TaskServiceStub) -> None:
    filter_ = " ".join(f"q{n}" for n in range(MAX_WATCH_SEARCHES + 1))
    stub.ListTasks(ListTasksRequest(filter=filter_))
    with fails(INVALID, "INVALID_REQUEST") as failure:
        next(stub.WatchTasks(WatchTasksRequest(filter=filter_)))
    assert failure.violations == {"filter": "FILTER_TOO_COSTLY"}
