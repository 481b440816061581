"""Authorization: the scopes that each method needs, and the events that a principal sees."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import grpc
import pytest

from server.access.authorization import NEEDED
from storage.database import Database
from taskservice.v1 import task_service_pb2
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    CreateTaskRequest,
    ListTaskEventsRequest,
    ListTasksRequest,
    PurgeTasksRequest,
    UpdateTaskRequest,
    WatchTasksRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.access import ADMIN, READ, WRITE, StubOf, counted_statements
from tests.support.errors import fails

DENIED, INVALID = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND

SUBSETS = [subset for size in range(4) for subset in combinations((READ, WRITE, ADMIN), size)]

METHODS = task_service_pb2.DESCRIPTOR.services_by_name["TaskService"].methods_by_name


def call(stub: TaskServiceStub, method: str) -> None:
    """Calls with a request that breaks a rule, whichever the method."""
    descriptor = METHODS[method]
    request: Any = getattr(task_service_pb2, descriptor.input_type.name)()
    for field in ("page_token", "resume_token", "filter", "id", "task_id"):
        if field in descriptor.input_type.fields_by_name:
            setattr(request, field, "(")
    answer = getattr(stub, method)(request)
    if descriptor.server_streaming:
        list(answer)


# --- Scopes ---------------------------------------------------------------------------------------


def test_every_method_of_the_contract_needs_a_scope() -> None:
    assert NEEDED.keys() == set(METHODS)


@pytest.mark.parametrize("scopes", SUBSETS, ids="+".join)
@pytest.mark.parametrize("method", METHODS)
def test_a_request_is_validated_only_with_the_scopes_of_its_method(
    stub_of: StubOf, method: str, scopes: tuple[str, ...]
) -> None:
    """AIP-211: an invalid request is reported only to a caller with the scopes."""
    missing = NEEDED[method] - set(scopes)
    with counted_statements() as statements, pytest.raises(grpc.RpcError) as raised:
        call(stub_of("ann", *scopes), method)
    if missing:
        expected = "; ".join(f"the scope {scope} is needed" for scope in sorted(missing))
        assert (raised.value.code(), raised.value.details()) == (DENIED, expected)
    else:
        assert raised.value.code() is INVALID
    assert statements == []


def test_only_purging_needs_an_administrator() -> None:
    assert [method for method, scopes in NEEDED.items() if ADMIN in scopes] == ["PurgeTasks"]


def test_a_watch_needs_the_scope_to_read(stub_of: StubOf) -> None:
    with fails(DENIED, "PERMISSION_DENIED"):
        list(stub_of("ann", WRITE, ADMIN).WatchTasks(WatchTasksRequest()))


@pytest.mark.parametrize("scope", [[READ, WRITE], f"openid {READ} tasks:everything"])
def test_scopes_may_be_a_list_or_stand_among_others(stub_of: StubOf, scope: object) -> None:
    stub_of("ann", scope=scope).ListTasks(ListTasksRequest())


@pytest.mark.parametrize("scope", [None, "", [], "tasks", "tasks:*", "TASKS:READ"])
def test_what_is_no_scope_permits_nothing(stub_of: StubOf, scope: object) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        stub_of("ann", scope=scope).PurgeTasks(PurgeTasksRequest(filter="*"))
    assert raised.value.code() == DENIED


# --- Whose events ---------------------------------------------------------------------------------


@pytest.fixture
def task_of_two(stub_of: StubOf) -> Task:
    """A task that ann and bob changed in turns: ann nine times, its creation included."""
    ann, bob = stub_of("ann", WRITE), stub_of("bob", WRITE)
    task = ann.CreateTask(CreateTaskRequest(task=Task(title="0")))
    for number in range(1, 17):
        stub = (ann, bob)[number % 2]
        stub.UpdateTask(UpdateTaskRequest(task=Task(id=task.id, title=str(number))))
    return task


def walk(stub: TaskServiceStub, task_id: str, page_size: int) -> list[str]:
    """The principals of a task's events, page after page."""
    principals: list[str] = []
    request = ListTaskEventsRequest(task_id=task_id, page_size=page_size)
    for _ in range(100):
        page = stub.ListTaskEvents(request)
        principals += [event.principal for event in page.events]
        if not page.next_page_token:
            return principals
        assert len(page.events) == page_size
        request.page_token = page.next_page_token
    pytest.fail("the walk does not end")


@pytest.mark.parametrize("page_size", [1, 2, 9, 10])
def test_a_principal_sees_its_own_events_on_full_pages(
    stub_of: StubOf, task_of_two: Task, page_size: int
) -> None:
    assert walk(stub_of("ann", READ), task_of_two.id, page_size) == ["ann"] * 9


def test_an_administrator_sees_the_events_of_all(stub_of: StubOf, task_of_two: Task) -> None:
    principals = walk(stub_of("carl", READ, ADMIN), task_of_two.id, 3)
    assert (principals.count("ann"), principals.count("bob")) == (9, 8)


def test_another_principal_sees_no_events_of_an_existing_task(
    stub_of: StubOf, task_of_two: Task
) -> None:
    assert walk(stub_of("carl", READ), task_of_two.id, 3) == []


def test_a_removed_task_is_not_found_by_other_principals(
    stub_of: StubOf, task_of_two: Task, database: Database
) -> None:
    """Its events stay, visible to their principals and to administrators."""
    with database.engine.connect() as connection:
        connection.exec_driver_sql("DELETE FROM tasks")
    with fails(NOT_FOUND, "TASK_NOT_FOUND"):
        walk(stub_of("carl", READ), task_of_two.id, 3)
    assert len(walk(stub_of("carl", READ, ADMIN), task_of_two.id, 3)) == 17
