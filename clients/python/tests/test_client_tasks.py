"""Tasks written and read by the client, on a real service."""

from __future__ import annotations

import asyncio
import datetime as dt
import uuid
from collections.abc import Callable

import pytest

from taskservice_client import (
    AsyncTaskClient,
    CreateTaskRequest,
    DeleteTaskRequest,
    EtagMismatch,
    InvalidRequest,
    RequestIdReused,
    Task,
    TaskClient,
    TaskEvent,
    TaskExists,
    TaskNotDeleted,
    TaskNotFound,
    TaskPriority,
    TaskStatus,
    TooLarge,
    UpdateTaskRequest,
)

DUE = dt.datetime(2090, 1, 2, 3, 4, 5, tzinfo=dt.UTC)


def new_tag() -> str:
    """A tag that no other test uses."""
    return uuid.uuid4().hex


def test_a_task_is_created_from_fields(client: TaskClient) -> None:
    task = client.create(
        title="a task", priority="HIGH", status="IN_PROGRESS", due_date=DUE, tags=["a", "b"]
    )
    assert task == client.get(task.id)
    assert (task.title, list(task.tags)) == ("a task", ["a", "b"])
    assert task.priority == TaskPriority.TASK_PRIORITY_HIGH
    assert task.status == TaskStatus.TASK_STATUS_IN_PROGRESS
    assert task.due_date.ToDatetime(dt.UTC) == DUE


def test_a_task_is_created_from_a_message(client: TaskClient) -> None:
    task_id = str(uuid.uuid4())
    task = client.create(Task(title="a task"), task_id=task_id, priority="LOW")
    assert (task.id, task.title) == (task_id, "a task")
    assert task.priority == TaskPriority.TASK_PRIORITY_LOW


def test_a_task_id_that_is_taken_is_refused(client: TaskClient) -> None:
    task = client.create(title="a task")
    with pytest.raises(TaskExists):
        client.create(title="another", task_id=task.id)


def test_a_request_id_of_the_caller_is_sent(client: TaskClient) -> None:
    request_id = str(uuid.uuid4())
    task = client.create(title="a task", request_id=request_id)
    assert client.create(title="a task", request_id=request_id).id == task.id
    with pytest.raises(RequestIdReused):
        client.create(title="another", request_id=request_id)


def test_a_dry_run_creates_nothing(client: TaskClient) -> None:
    task = client.create(title="a task", validate_only=True)
    with pytest.raises((TaskNotFound, InvalidRequest)):
        client.get(task.id)


def test_a_due_date_without_a_time_zone_is_refused(client: TaskClient) -> None:
    with pytest.raises(ValueError, match="time zone"):
        client.create(title="a task", due_date=DUE.replace(tzinfo=None))


def test_an_update_changes_only_the_fields_given(client: TaskClient) -> None:
    task = client.create(title="a task", description="kept", due_date=DUE, tags=["a"])
    updated = client.update(task.id, status="COMPLETED", due_date=None, tags=[])
    assert (updated.title, updated.description) == ("a task", "kept")
    assert updated.status == TaskStatus.TASK_STATUS_COMPLETED
    assert not updated.HasField("due_date")
    assert not updated.tags


def test_a_stale_etag_is_refused_with_the_task_as_it_is(client: TaskClient) -> None:
    task = client.create(title="a task")
    current = client.update(task.id, title="changed")
    writes: list[Callable[[], Task]] = [
        lambda: client.update(task.id, title="overwritten", etag=task.etag),
        lambda: client.delete(task.id, etag=task.etag),
    ]
    for write in writes:
        with pytest.raises(EtagMismatch) as raised:
            write()
        assert raised.value.current == current


def test_a_mutation_is_applied_again_after_another_write(client: TaskClient) -> None:
    task = client.create(title="a task")
    seen: list[str] = []

    def add_tag(task: Task) -> None:
        seen.append(task.title)
        if len(seen) == 1:
            client.update(task.id, title="written in between")
        task.tags.append("added")

    updated = client.update(task.id, add_tag)
    assert seen == ["a task", "written in between"]
    assert (updated.title, list(updated.tags)) == ("written in between", ["added"])


def test_a_mutation_that_changes_nothing_writes_nothing(client: TaskClient) -> None:
    task = client.create(title="a task")
    assert client.update(task.id, lambda task: None).etag == task.etag


def test_a_task_is_deleted_and_undeleted(client: TaskClient) -> None:
    task = client.create(title="a task")
    assert client.delete(task.id).HasField("deleted_at")
    with pytest.raises(TaskNotFound):
        client.delete(task.id)
    assert client.delete(task.id, allow_missing=True).id == task.id
    assert not client.undelete(task.id).HasField("deleted_at")
    with pytest.raises(TaskNotDeleted):
        client.undelete(task.id)


def test_a_list_iterates_over_all_pages(client: TaskClient) -> None:
    tag = new_tag()
    client.create_many(Task(title=f"task {n}", tags=[tag]) for n in range(5))
    found = client.list(f"tags:{tag}", order_by="title desc", page_size=2)
    assert [task.title for task in found] == [f"task {n}" for n in reversed(range(5))]


def test_deleted_tasks_are_listed_if_asked_for(client: TaskClient) -> None:
    tag = new_tag()
    task = client.create(title="a task", tags=[tag])
    client.delete(task.id)
    assert list(client.list(f"tags:{tag}")) == []
    assert [each.id for each in client.list(f"tags:{tag}", show_deleted=True)] == [task.id]


def test_tasks_are_counted(client: TaskClient) -> None:
    tag = new_tag()
    client.create(title="a task", tags=[tag], status="COMPLETED")
    stats = client.stats(f"tags:{tag}")
    assert client.count(f"tags:{tag}") == stats.total == 1
    assert {each.status: each.count for each in stats.by_status}[
        TaskStatus.TASK_STATUS_COMPLETED
    ] == 1


def test_the_history_iterates_over_all_pages(client: TaskClient) -> None:
    task = client.create(title="0")
    for number in range(1, 4):
        client.update(task.id, title=str(number))
    events = list(client.history(task.id, page_size=2))
    assert [event.type for event in events] == [TaskEvent.TYPE_UPDATED] * 3 + [
        TaskEvent.TYPE_CREATED
    ]


def test_a_purge_counts_before_it_removes(client: TaskClient) -> None:
    tag = new_tag()
    task = client.create(title="a task", tags=[tag])
    client.delete(task.id)
    assert list(client.purge(f"tags:{tag}").purge_sample) == [task.id]
    assert client.purge(f"tags:{tag}", force=True).purge_count == 1
    with pytest.raises(TaskNotFound):
        client.get(task.id)


def test_the_service_is_healthy(client: TaskClient) -> None:
    assert client.health()


# Batches.


def test_a_batch_of_more_than_a_thousand_is_split(client: TaskClient) -> None:
    tag = new_tag()
    tasks = client.create_many(Task(title=f"{n:04}", tags=[tag]) for n in range(1001))
    assert [task.title for task in tasks] == [f"{n:04}" for n in range(1001)]
    assert [task.id for task in client.get_many(task.id for task in tasks)] == [
        task.id for task in tasks
    ]
    assert len(client.delete_many(task.id for task in tasks)) == 1001
    assert client.count(f"tags:{tag}") == 0


def test_a_batch_of_more_than_three_megabytes_is_split(client: TaskClient) -> None:
    """Requests and responses have different limits."""
    large = Task(title="a" * 200, description="ä" * 2000)
    tasks = client.create_many([large] * 900)
    assert len({task.id for task in tasks}) == 900
    updates = (UpdateTaskRequest(task=Task(id=task.id, assigned_to="ann")) for task in tasks)
    assert {task.assigned_to for task in client.update_many(updates)} == {"ann"}


def test_an_error_counts_the_items_of_all_batches(client: TaskClient) -> None:
    tag = new_tag()
    items = [CreateTaskRequest(task=Task(title="a task", tags=[tag])) for _ in range(1500)]
    items[1200].task.title = ""
    with pytest.raises(InvalidRequest) as raised:
        client.create_many(items)
    assert [each.field for each in raised.value.violations] == ["requests[1200].task.title"]
    assert len(raised.value.written) == client.count(f"tags:{tag}") == 1000


def test_an_error_names_the_item(client: TaskClient) -> None:
    """Of all batches: this one is in the second."""
    ids = [task.id for task in client.create_many([Task(title="a task")] * 1001)]
    with pytest.raises(TaskNotFound) as raised:
        client.delete_many([*ids, str(uuid.uuid4())])
    assert raised.value.item == 1001


def test_a_stale_etag_in_a_batch_is_refused_with_the_task_as_it_is(client: TaskClient) -> None:
    task, other = client.create_many([Task(title="a task")] * 2)
    current = client.update(task.id, title="changed")
    writes: list[Callable[[], object]] = [
        lambda: client.update_many([Task(id=other.id, title="other"), task]),
        lambda: client.delete_many([other.id, DeleteTaskRequest(id=task.id, etag=task.etag)]),
    ]
    for write in writes:
        with pytest.raises(EtagMismatch) as raised:
            write()
        assert (raised.value.item, raised.value.current) == (1, current)


def test_a_request_that_is_too_large_is_refused(client: TaskClient) -> None:
    with pytest.raises(TooLarge):
        client.create(title="a task", description="a" * 300_000)


# asyncio.


def test_the_client_for_asyncio_does_the_same(address: str) -> None:
    tag = new_tag()

    async def run() -> None:
        async with AsyncTaskClient(address) as client:
            task = await client.create(title="a task", tags=[tag], priority="HIGH")
            await client.update(task.id, lambda task: task.tags.append("more"))
            assert [list(each.tags) async for each in client.list(f"tags:{tag}")] == [[tag, "more"]]
            assert [event.type async for event in client.history(task.id)] == [
                TaskEvent.TYPE_UPDATED,
                TaskEvent.TYPE_CREATED,
            ]
            with pytest.raises(EtagMismatch) as raised:
                await client.delete(task.id, etag=task.etag)
            assert raised.value.current is not None
            await client.create_many([Task(title="another", tags=[tag])])
            assert await client.count(f"tags:{tag}") == 2
            assert await client.health()

    asyncio.run(run())
