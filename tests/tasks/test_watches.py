"""Watches: each change exactly once, in order, from any place that was told, for every filter."""

from __future__ import annotations

import datetime as dt
import random
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import error_details_pb2
from structlog.testing import capture_logs

from server.process.signals import Signals
from server.settings import Settings
from server.worker import Worker
from storage.database import Database
from storage.events import Batch, EventLog, Position
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    BatchCreateTasksRequest,
    CreateTaskRequest,
    DeleteTaskRequest,
    GetTaskRequest,
    ListTasksRequest,
    UndeleteTaskRequest,
    UpdateTaskRequest,
    WatchTasksRequest,
    WatchTasksResponse,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.errors import Failure, fails
from tests.support.service import PATIENCE_SECONDS, wait_until
from tests.support.watching import (
    ADDED,
    BOOKMARK,
    DELETED,
    MODIFIED,
    Watch,
    create_by_hand,
    one_transaction,
    update_by_hand,
)
from tests.support.workers import running_worker

Create = Callable[..., Task]
OpenWatch = Callable[..., Watch]
Serve = Callable[..., TaskServiceStub]

INVALID = grpc.StatusCode.INVALID_ARGUMENT
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
EXPIRED = grpc.StatusCode.OUT_OF_RANGE
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE

NEVER = 600.0
"""Seconds, more than a test waits: what does not come before that does not come."""

NOTHING = dt.timedelta(0)

OF_ANN = 'assigned_to = "ann"'
OF_BOB = 'assigned_to = "bob"'


@pytest.fixture
def serve(settings: Settings, database: Database, database_url: str) -> Iterator[Serve]:
    """Starts a service with settings of its own, on the shared database."""
    with ExitStack() as running:

        def serve(**changes: object) -> TaskServiceStub:
            own = settings.model_copy(update=changes)
            return TaskServiceStub(running.enter_context(running_worker(own, database_url)))

        yield serve


@pytest.fixture
def watch(stub: TaskServiceStub, serve: Serve) -> Iterator[OpenWatch]:
    """Opens a watch; it ends with the test, before the service that it is of."""
    opened: list[Watch] = []

    def open_watch(at: TaskServiceStub | None = None, **request: Any) -> Watch:
        opened.append(Watch(at or stub, **request))
        return opened[-1]

    yield open_watch
    for one in opened:
        one.cancel()


def joined(watch: OpenWatch, *at: TaskServiceStub, **request: Any) -> Watch:
    """A watch that has told its first bookmark: what happens from now on it tells."""
    opened = watch(*at, **request)
    opened.bookmark()
    return opened


def create(stub: TaskServiceStub, *titles: str, **fields: object) -> list[Task]:
    """Creates tasks, all at once."""
    requests = [
        CreateTaskRequest(task=Task(title=title, **fields))  # type: ignore[arg-type]
        for title in titles
    ]
    return list(stub.BatchCreateTasks(BatchCreateTasksRequest(requests=requests)).tasks)


def update(stub: TaskServiceStub, task: Task, **fields: object) -> Task:
    changed = Task(id=task.id, **fields)  # type: ignore[arg-type]
    return stub.UpdateTask(
        UpdateTaskRequest(task=changed, update_mask=FieldMask(paths=list(fields)))
    )


def delete(stub: TaskServiceStub, task: Task) -> Task:
    return stub.DeleteTask(DeleteTaskRequest(id=task.id))


def failure_of(code: grpc.StatusCode, reason: str, watch: Watch) -> Failure:
    """The watch has to end so."""
    with fails(code, reason) as failure:
        raise watch.error()
    return failure


def titles(responses: list[WatchTasksResponse]) -> list[str]:
    return [response.task.title for response in responses]


# What is told.


def test_a_watch_begins_with_a_bookmark(
    watch: OpenWatch, create_task: Create, database: Database
) -> None:
    before = EventLog(database).head()
    create_task()
    wait_until(lambda: EventLog(database).head() > before, "the creation is settled")
    watch().bookmark()


def test_each_write_is_told_as_it_was_answered(stub: TaskServiceStub, watch: OpenWatch) -> None:
    watching = joined(watch)
    (created,) = create(stub, "one", assigned_to="ann", tags=["a", "b"])
    updated = update(stub, created, title="two")
    deleted = delete(stub, updated)
    undeleted = stub.UndeleteTask(UndeleteTaskRequest(id=created.id))
    heard = watching.changes(4)
    assert [(response.type, response.task) for response in heard] == [
        (ADDED, created),
        (MODIFIED, updated),
        (DELETED, deleted),
        (ADDED, undeleted),
    ]


def test_each_change_bears_a_token_of_its_own(stub: TaskServiceStub, watch: OpenWatch) -> None:
    watching = joined(watch)
    create(stub, "one", "two", "three")
    assert len({response.resume_token for response in watching.changes(3)} - {""}) == 3


def test_a_write_that_changes_nothing_is_not_told(stub: TaskServiceStub, watch: OpenWatch) -> None:
    watching = joined(watch)
    (task,) = create(stub, "one")
    update(stub, task, title="one")
    stub.CreateTask(CreateTaskRequest(task=Task(title="not meant"), validate_only=True))
    create(stub, "two")
    assert titles(watching.changes(2)) == ["one", "two"]


def test_a_change_is_told_although_its_announcement_was_lost(
    serve: Serve, watch: OpenWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.wakeups.Announcer.announce", lambda _: None)
    stub = serve()
    watching = joined(watch, stub)
    create(stub, "unannounced")
    assert titles(watching.changes(1)) == ["unannounced"]


def test_a_change_is_told_by_another_process_than_wrote_it(
    stub: TaskServiceStub, serve: Serve, watch: OpenWatch
) -> None:
    watching = joined(watch, serve())
    create(stub, "elsewhere")
    assert titles(watching.changes(1)) == ["elsewhere"]


# Initial tasks.


@pytest.mark.parametrize("count", [0, 1, 2, 4, 5])
def test_initial_tasks_are_those_that_stand_and_then_a_bookmark(
    stub: TaskServiceStub, watch: OpenWatch, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """On one page, several, or some that are full to the last."""
    monkeypatch.setattr("server.tasks.watches._BATCH", 2)
    standing = create(stub, *map(str, range(count))) if count else []
    (gone,) = create(stub, "gone")
    delete(stub, gone)
    watching = watch(send_initial_tasks=True)
    heard = [watching.next() for _ in range(count)]
    watching.bookmark()
    assert {(r.type, r.resume_token) for r in heard} <= {(ADDED, "")}
    assert [r.task for r in heard] == sorted(standing, key=lambda task: task.id)


def test_initial_tasks_are_only_those_that_match(stub: TaskServiceStub, watch: OpenWatch) -> None:
    create(stub, "hers", assigned_to="ann")
    create(stub, "his", assigned_to="bob")
    watching = watch(send_initial_tasks=True, filter=OF_ANN)
    assert watching.next().task.title == "hers"
    watching.bookmark()


def test_changes_follow_the_initial_tasks(stub: TaskServiceStub, watch: OpenWatch) -> None:
    (task,) = create(stub, "before")
    watching = watch(send_initial_tasks=True)
    assert watching.next().task == task
    token = watching.bookmark()
    updated = update(stub, task, title="after")
    change = watching.change()
    assert (change.type, change.task) == (MODIFIED, updated)
    assert watch(resume_token=token).change().task == updated


@pytest.mark.parametrize("committed", [True, False], ids=["commit", "rollback"])
def test_the_first_bookmark_waits_for_writes_that_the_pages_could_not_see(
    stub: TaskServiceStub, watch: OpenWatch, database: Database, committed: bool
) -> None:
    """Those that were under way when a page was read are neither on it nor behind the bookmark."""
    (task, other) = sorted(create(stub, "old", "other"), key=lambda task: task.id)
    with suppress(ZeroDivisionError), one_transaction(database) as held:
        update_by_hand(held, task.id, title="new")
        create_by_hand(held, str(uuid.uuid4()))
        watching = watch(send_initial_tasks=True)
        assert [watching.next().task for _ in range(2)] == [task, other]
        after = update(stub, other, title="beside")
        if not committed:
            raise ZeroDivisionError
    expected = {(MODIFIED, "new"), (ADDED, "by hand")} if committed else set()
    expected |= {(MODIFIED, "beside")}
    heard = [watching.change() for _ in expected]
    assert {(r.type, r.task.title) for r in heard} == expected
    assert [r.task for r in heard if r.task.id == other.id] == [after]
    (last,) = create(stub, "last")
    assert watching.change().task == last


def test_no_bookmark_while_a_write_is_open_that_the_pages_could_not_see(
    stub: TaskServiceStub, watch: OpenWatch, database: Database
) -> None:
    """A watch that begins now meets what was committed before, and its bookmark only after it."""
    (task,) = create(stub, "old")
    with one_transaction(database) as held:
        update_by_hand(held, task.id, title="new")
        (newer,) = create(stub, "newer")
        watching = watch(send_initial_tasks=True)
        assert [watching.next().task for _ in range(2)] == [task, newer]
    before_the_bookmark = watching.next()
    assert (before_the_bookmark.type, before_the_bookmark.resume_token) == (MODIFIED, "")
    watching.bookmark()


@pytest.mark.parametrize("case", [(seed, filter_) for seed in range(4) for filter_ in ("", OF_ANN)])
def test_what_a_watch_tells_adds_up_to_the_list(
    stub: TaskServiceStub,
    watch: OpenWatch,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    case: tuple[int, str],
) -> None:
    """Writers go on while the initial tasks are read, page by page, and after that."""
    seed, filter_ = case
    monkeypatch.setattr("server.tasks.watches._BATCH", 3)
    shared = [task.id for task in create(stub, *map(str, range(30)), assigned_to="ann")]
    stop = threading.Event()
    with ThreadPoolExecutor() as pool:
        writers = [
            pool.submit(_write_at_random, stub, database, f"{seed} {n}", shared, stop)
            for n in range(4)
        ]
        try:
            watching = [watch(send_initial_tasks=True, filter=filter_) for _ in range(3)]
            heard = [_to_the_bookmark(one) for one in watching]
        finally:
            stop.set()
        for writer in writers:
            writer.result()
    (last,) = create(stub, "last", assigned_to="ann")
    tasks = stub.ListTasks(ListTasksRequest(page_size=1000, filter=filter_)).tasks
    for one, responses in zip(watching, heard, strict=True):
        while (response := one.change()).task.id != last.id:
            responses.append(response)
        states = [(r.task.id, r.task.etag) for r in [*responses, response]]
        assert len(states) == len(set(states))
        assert _added_up([*responses, response]) == {task.id: task for task in tasks}


def _to_the_bookmark(watching: Watch) -> list[WatchTasksResponse]:
    heard = []
    while (response := watching.next()).type != BOOKMARK:
        heard.append(response)
    return heard


def _added_up(responses: list[WatchTasksResponse]) -> dict[str, Task]:
    """What a caller has that keeps the tasks it is told of."""
    tasks: dict[str, Task] = {}
    for response in responses:
        known = response.task.id in tasks
        assert known == (response.type != ADDED), response
        tasks[response.task.id] = response.task
        if response.type == DELETED:
            del tasks[response.task.id]
    return tasks


def _write_at_random(
    stub: TaskServiceStub,
    database: Database,
    seed: str,
    shared: list[str],
    stop: threading.Event,
) -> None:
    """Writes, over the service and in transactions that take their time.

    Not for ever: watches of one caller take turns to read, three events at a time here, and would
    not catch up with writers that are faster.
    """
    dice = random.Random(seed)  # noqa: S311
    for _ in range(150):
        if stop.is_set():
            return
        task = Task(id=dice.choice(shared))
        who = dice.choice(["ann", "bob"])
        with suppress(grpc.RpcError):  # Another was first.
            match dice.randrange(6):
                case 0:
                    delete(stub, task)
                case 1:
                    stub.UndeleteTask(UndeleteTaskRequest(id=task.id))
                case 2:
                    create(stub, "new", assigned_to=who)
                case 3:
                    with one_transaction(database) as held:
                        create_by_hand(held, str(uuid.uuid4()))
                        stop.wait(dice.uniform(0, 0.01))
                case _:
                    update(stub, task, assigned_to=who)


# Filters.


def test_a_task_that_comes_into_the_filter_is_added_and_one_that_leaves_is_deleted(
    stub: TaskServiceStub, watch: OpenWatch
) -> None:
    watching = joined(watch, filter=OF_ANN)
    (task,) = create(stub, "0", assigned_to="bob")
    update(stub, task, title="1")
    into = update(stub, task, assigned_to="ann")
    within = update(stub, task, title="3")
    out = update(stub, task, assigned_to="bob")
    update(stub, task, title="5")
    delete(stub, task)
    stub.UndeleteTask(UndeleteTaskRequest(id=task.id))
    again = update(stub, task, assigned_to="ann")
    gone = delete(stub, task)
    back = stub.UndeleteTask(UndeleteTaskRequest(id=task.id))
    assert [(r.type, r.task) for r in watching.changes(6)] == [
        (ADDED, into),
        (MODIFIED, within),
        (DELETED, out),
        (ADDED, again),
        (DELETED, gone),
        (ADDED, back),
    ]


def test_each_watch_is_told_what_its_own_filter_matches(
    stub: TaskServiceStub, watch: OpenWatch
) -> None:
    filters = [OF_ANN, OF_BOB, "", OF_ANN, "title:task", "priority >= HIGH"]
    watches = [joined(watch, filter=filter_) for filter_ in filters]
    (task,) = create(stub, "task 1", assigned_to="ann")
    update(stub, task, assigned_to="bob")
    create(stub, "end", assigned_to="ann")
    create(stub, "end", assigned_to="bob", priority="TASK_PRIORITY_HIGH")
    expected = [
        [(ADDED, "task 1"), (DELETED, "task 1"), (ADDED, "end")],
        [(ADDED, "task 1"), (ADDED, "end")],
        [(ADDED, "task 1"), (MODIFIED, "task 1"), (ADDED, "end"), (ADDED, "end")],
        [(ADDED, "task 1"), (DELETED, "task 1"), (ADDED, "end")],
        [(ADDED, "task 1"), (MODIFIED, "task 1")],
        [(ADDED, "end")],
    ]
    heard = [
        [(r.type, r.task.title) for r in one.changes(len(changes))]
        for one, changes in zip(watches, expected, strict=True)
    ]
    assert heard == expected


def test_watches_that_join_and_leave_do_not_disturb_the_others(
    stub: TaskServiceStub, watch: OpenWatch
) -> None:
    watching = joined(watch)
    for number in range(20):
        create(stub, f"{number} before", assigned_to="ann")
        guest = joined(watch, filter=f'{OF_ANN} AND title = "{number} after"')
        create(stub, f"{number} after", assigned_to="ann")
        assert guest.change().task.title == f"{number} after"
        guest.cancel()
    expected = [f"{number} {when}" for number in range(20) for when in ("before", "after")]
    assert titles(watching.changes(40)) == expected


def test_a_watch_that_joins_in_the_place_of_the_last_one_misses_nothing(
    stub: TaskServiceStub, watch: OpenWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has read less than the others had been served when they left, in the middle of a read."""
    gates = {"stream": _Gate(), "watches": _Gate()}
    read = EventLog.read

    def held(self: EventLog, position: Position, **options: Any) -> Batch:
        batch = read(self, position, **options)
        gates[threading.current_thread().name.partition("_")[0]].pass_through()
        return batch

    monkeypatch.setattr("storage.events.EventLog.read", held)
    first = joined(watch)
    with gates["stream"].closed(), capture_logs() as logs:
        second = watch()
        gates["stream"].await_somebody()
        create(stub, "one")
        assert titles(first.changes(1)) == ["one"]
        with gates["watches"].closed():
            create(stub, "two")
            gates["watches"].await_somebody()
            first.cancel()
            wait_until(lambda: _ended_watches(logs), "the first has left")
            gates["stream"].open()
            second.bookmark()
    assert titles(second.changes(1)) == ["one"]


def _ended_watches(logs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The log's lines of watches that have ended."""
    return [line for line in logs if str(line.get("method")).endswith("/WatchTasks")]


class _Gate:
    """Where threads wait while it is closed."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._somebody = threading.Event()
        self._open.set()

    def pass_through(self) -> None:
        if not self._open.is_set():
            self._somebody.set()
        assert self._open.wait(PATIENCE_SECONDS)

    def await_somebody(self) -> None:
        assert self._somebody.wait(PATIENCE_SECONDS)

    def open(self) -> None:
        self._open.set()

    def closed(self) -> ExitStack:
        self._open.clear()
        opening = ExitStack()
        opening.callback(self.open)
        return opening


# Resuming.


@pytest.fixture
def history(stub: TaskServiceStub, watch: OpenWatch) -> list[WatchTasksResponse]:
    """What a watch told of seven changes, its first bookmark included."""
    watching = watch(filter=OF_ANN)
    heard = [watching.next()]
    tasks = create(stub, "0", "1", "2", assigned_to="ann")
    create(stub, "not hers")
    for task in tasks:
        update(stub, task, title=f"{task.title} again")
    delete(stub, tasks[1])
    return heard + watching.changes(7)


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])
def test_every_token_goes_on_exactly_behind_its_response(
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


def test_a_resumed_watch_tells_a_bookmark_when_it_has_told_what_happened(
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
def test_a_token_that_is_not_as_it_was_given_is_refused(
    watch: OpenWatch, spoil: Callable[[str], str]
) -> None:
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


def test_what_is_removed_before_a_token_does_not_matter_to_it(
    stub: TaskServiceStub, watch: OpenWatch, database: Database
) -> None:
    watching = joined(watch)
    create(stub, "one")
    token = watching.change().resume_token
    EventLog(database).trim(older_than=NOTHING)
    create(stub, "two")
    assert titles(watch(resume_token=token).changes(1)) == ["two"]
    assert titles(watching.changes(1)) == ["two"]


# Bookmarks.


def test_bookmarks_come_while_nothing_happens(serve: Serve, watch: OpenWatch) -> None:
    watching = watch(serve(watch_bookmark_interval_seconds=0.05))
    tokens = [watching.bookmark() for _ in range(3)]
    assert len(set(tokens)) == 3


def test_bookmarks_move_past_changes_that_do_not_match(
    serve: Serve, watch: OpenWatch, database: Database
) -> None:
    """So a watch that seldom matches does not outlive what its token needs."""
    stub = serve(watch_bookmark_interval_seconds=0.05)
    watching, everything = joined(watch, stub, filter=OF_ANN), joined(watch, stub)
    create(stub, "not hers")
    everything.change()  # Both are served from one read.
    EventLog(database).trim(older_than=NOTHING)

    def resumes() -> str | None:
        resumed = watch(stub, filter=OF_ANN, resume_token=watching.bookmark())
        with suppress(grpc.RpcError):
            return resumed.bookmark()
        return None

    wait_until(resumes, "a bookmark behind the change")


# Slow readers.


def test_a_watch_that_does_not_keep_up_reads_for_itself(
    stub: TaskServiceStub, watch: OpenWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than its buffer holds is neither lost nor repeated."""
    monkeypatch.setattr("server.tasks.watches._BUFFER", 2)
    monkeypatch.setattr("server.tasks.watches._BATCH", 5)
    watches = [joined(watch), joined(watch, filter='title != "3"')]
    written = [title for n in range(10) for title in _created(stub, n)]
    for one, expected in zip(watches, (written, [t for t in written if t != "3"]), strict=True):
        heard = [one.next()]
        while heard[-1].type != BOOKMARK or written[-1] not in titles(heard):
            heard.append(one.next())  # The bookmark says that it has read for itself, to the end.
        assert [response.task.title for response in heard if response.type == ADDED] == expected


def _created(stub: TaskServiceStub, number: int) -> list[str]:
    """The titles of a batch, whose tasks' ids are in the same order."""
    return titles_of(create(stub, *(f"{number * 7 + n}" for n in range(7))))


def titles_of(tasks: list[Task]) -> list[str]:
    return [task.title for task in sorted(tasks, key=lambda task: task.id)]


def test_a_watch_that_is_not_read_is_told_to_resume(serve: Serve, watch: OpenWatch) -> None:
    """It may not hold a thread for good; nobody else hears of it, and it loses nothing."""
    stub = serve(watch_stall_seconds=0.2)
    unread: Any = stub.WatchTasks(WatchTasksRequest())
    heard: list[WatchTasksResponse] = [next(unread)]
    watching = joined(watch, stub)
    written: list[str] = []
    with capture_logs() as logs:
        while not [line for line in logs if line["event"] == "watch stalled"]:
            written += titles_of(create(stub, *_NUMBERS, description="x" * 2000))
    assert titles(watching.changes(len(written))) == written
    with pytest.raises(grpc.RpcError) as raised:
        heard.extend(unread)
    assert raised.value.code() == UNAVAILABLE
    resumed = watch(stub, resume_token=heard[-1].resume_token)
    assert titles(heard[1:] + resumed.changes(len(written) - len(heard[1:]))) == written


_NUMBERS = [str(number) for number in range(200)]


# Limits.


def test_more_filters_than_one_statement_asks_about_are_answered(
    stub: TaskServiceStub, watch: OpenWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One connection opens them all here; else they are those of several callers."""
    monkeypatch.setattr("server.tasks.watches._FILTERS_PER_CALLER", 80)
    numbers = range(40)
    watches = [joined(watch, filter=f"assigned_to = person{n} OR id:*") for n in numbers]
    own = [joined(watch, filter=f"assigned_to = person{n}") for n in numbers]
    for number in numbers:
        create(stub, f"{number}", assigned_to=f"person{number}")
    assert all(len(one.changes(len(numbers))) == len(numbers) for one in watches)
    assert [one.change().task.title for one in own] == [str(number) for number in numbers]


def test_a_filter_with_too_many_searches_is_refused(watch: OpenWatch) -> None:
    """There is no index to search in what has just changed; every change would be searched."""
    watch(filter=" OR ".join(f"word{n}" for n in range(5))).bookmark()
    failure = failure_of(INVALID, "INVALID_REQUEST", watch(filter="a b c (d OR -title:e) f"))
    assert failure.violations == {"filter": "FILTER_TOO_COSTLY"}


def test_watches_that_read_for_themselves_leave_the_pool_to_calls(
    serve: Serve, watch: OpenWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a restart, when all of them resume at once."""
    gate = _Gate()
    read = EventLog.read

    def held(self: EventLog, position: Position, **options: Any) -> Batch:
        if threading.current_thread().name.startswith("stream"):
            with self._database.engine.connect():
                gate.pass_through()
        return read(self, position, **options)

    monkeypatch.setattr("storage.events.EventLog.read", held)
    stub = serve(db_pool_size=3, db_max_overflow=0)
    with gate.closed():
        watches = [watch(stub) for _ in range(20)]
        gate.await_somebody()
        (task,) = create(stub, "task")
        assert stub.GetTask(GetTaskRequest(id=task.id), timeout=PATIENCE_SECONDS) == task
    for one in watches:
        _to_the_bookmark(one)


def test_one_watch_too_many_is_refused_until_another_ends(serve: Serve, watch: OpenWatch) -> None:
    stub = serve(max_watches_per_worker=2)
    watches = [joined(watch, stub) for _ in range(2)]
    failure = failure_of(EXHAUSTED, "TOO_MANY_WATCHES", watch(stub))
    assert failure.detail(error_details_pb2.RetryInfo).retry_delay.seconds
    watches[0].cancel()

    def has_a_place() -> str | None:
        with suppress(grpc.RpcError):
            return watch(stub).bookmark()
        return None

    wait_until(has_a_place, "a place for another watch")
    create(stub, "one")
    assert watches[1].change().task.title == "one"


def test_one_watch_too_many_of_a_principal_is_refused(serve: Serve, watch: OpenWatch) -> None:
    stub = serve(max_watches_per_principal=2)
    for _ in range(2):
        joined(watch, stub)
    failure = failure_of(EXHAUSTED, "TOO_MANY_WATCHES", watch(stub))
    assert failure.detail(error_details_pb2.RetryInfo).retry_delay.seconds
    (violation,) = failure.detail(error_details_pb2.QuotaFailure).violations
    assert violation.subject == "anonymous"


def test_watches_take_no_thread_of_calls_and_no_connection_of_the_pool(
    serve: Serve, watch: OpenWatch
) -> None:
    stub = serve(threads_per_worker=1, db_pool_size=1, db_max_overflow=0)
    watches = [joined(watch, stub, filter=f'title != "{n}"') for n in range(10)]
    (task,) = create(stub, "task")
    assert [one.change().task for one in watches] == [task] * 10
    assert stub.GetTask(GetTaskRequest(id=task.id), timeout=PATIENCE_SECONDS) == task


def test_draining_ends_watches_at_once(
    settings: Settings, database: Database, database_url: str
) -> None:
    """However long calls have to finish: a watch never would."""
    worker = Worker(settings.model_copy(update={"shutdown_grace_seconds": NEVER}), database_url)
    with grpc.insecure_channel(f"127.0.0.1:{worker.start().grpc}") as channel:
        watches = [Watch(TaskServiceStub(channel)) for _ in range(3)]
        for one in watches:
            one.bookmark()
        with Signals() as signals:
            assert worker.drain(signals)
        for one in watches:
            failure = failure_of(UNAVAILABLE, "SHUTTING_DOWN", one)
            assert failure.detail(error_details_pb2.RetryInfo).retry_delay.seconds


def test_draining_ends_a_watch_that_is_still_at_its_initial_tasks(
    stub: TaskServiceStub, settings: Settings, database_url: str
) -> None:
    """Its caller begins anew elsewhere, and need not take the rest first."""
    standing = [
        task
        for _ in range(8)
        for task in create(stub, *_NUMBERS, *_NUMBERS, description="x" * 2000)
    ]
    worker = Worker(settings.model_copy(update={"shutdown_grace_seconds": NEVER}), database_url)
    with grpc.insecure_channel(f"127.0.0.1:{worker.start().grpc}") as channel:
        unread: Any = TaskServiceStub(channel).WatchTasks(
            WatchTasksRequest(send_initial_tasks=True)
        )
        heard = [next(unread)]
        with ThreadPoolExecutor() as pool, Signals() as signals:
            drained = pool.submit(worker.drain, signals)
            with fails(UNAVAILABLE, "SHUTTING_DOWN"):
                heard.extend(unread)
            assert drained.result()
    assert len(heard) < len(standing)


def test_a_watch_that_ends_leaves_one_line_in_the_log(
    stub: TaskServiceStub, watch: OpenWatch
) -> None:
    with capture_logs() as logs:
        watching = joined(watch)
        assert not _ended_watches(logs)
        watching.cancel()
        (line,) = wait_until(lambda: _ended_watches(logs), "the watch has ended")
    assert (line["event"], line["code"]) == ("call", "CANCELLED")
    assert line.keys() >= {"duration_ms", "peer", "request_id"}
