"""REST answers what gRPC answers: the same task, the same error."""

import json
import uuid
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict, MessageToJson
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status
from hypothesis import given
from hypothesis import strategies as st

from taskservice.v1 import task_service_pb2 as pb
from taskservice.v1.task_pb2 import Task, TaskPriority, TaskStatus
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.gateway.conftest import CreateTask
from tests.support.rest import Gateway

# As the gateway writes them.
FORMAT = {"preserving_proto_field_name": True, "always_print_fields_with_no_presence": True}
STATUSES = {3: 400, 5: 404, 6: 409, 9: 400, 10: 409}
WHO_AND_WHEN = {"id", "etag", "created_at", "updated_at", "completed_at"}

TASKS = st.builds(
    Task,
    title=st.text(st.characters(exclude_categories=["Cs"]), max_size=210),
    description=st.text(max_size=20),
    status=st.sampled_from(TaskStatus.values()),
    priority=st.sampled_from(TaskPriority.values()),
    assigned_to=st.sampled_from(["", "ann", "x" * 201]),
    tags=st.lists(st.text(max_size=8), max_size=11),
)
FILTERS = st.sampled_from(["", "status=PENDING", "tags:a AND", 'title="x"', "nope=1", "priority>1"])


def written(message: Message) -> dict[str, Any]:
    return MessageToDict(message, **FORMAT)  # type: ignore[arg-type]


def status_of(error: grpc.RpcError) -> dict[str, Any]:
    """Return the error's status as REST has it."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None
    return written(Status.FromString(status.SerializeToString()))


@given(sent=TASKS)
def test_a_task_is_created_alike(gateway: Gateway, grpc_stub: TaskServiceStub, sent: Task) -> None:
    answer = gateway.call("POST /tasks", MessageToJson(sent))
    try:
        expected = written(grpc_stub.CreateTask(pb.CreateTaskRequest(task=sent)))
    except grpc.RpcError as error:
        status = status_of(error)
        assert (answer.status, answer.json) == (STATUSES[status["code"]], status)
        return
    assert answer.status == 201, answer.body
    assert answer.json.keys() == expected.keys()
    for name in expected.keys() - WHO_AND_WHEN:
        assert answer.json[name] == expected[name], name


@given(filter_=FILTERS, size=st.sampled_from([-1, 0, 1, 3]), deleted=st.booleans())
def test_a_page_is_read_alike(
    gateway: Gateway, grpc_stub: TaskServiceStub, filter_: str, size: int, deleted: bool
) -> None:
    request = pb.ListTasksRequest(filter=filter_, page_size=size, show_deleted=deleted)
    escaped = filter_.replace(" ", "+").replace('"', "%22").replace("=", "%3D").replace(">", "%3E")
    query = f"filter={escaped}&page_size={size}&show_deleted={json.dumps(deleted)}"
    answer = gateway.call(f"GET /tasks?{query}")
    try:
        expected = written(grpc_stub.ListTasks(request))
    except grpc.RpcError as error:
        status = status_of(error)
        assert (answer.status, answer.json) == (STATUSES[status["code"]], status)
        return
    assert answer.json["tasks"] == expected["tasks"]


def test_every_other_route_answers_alike(
    gateway: Gateway, grpc_stub: TaskServiceStub, task: CreateTask
) -> None:
    """Each on a task of its own, where it writes."""
    one, two = task(), task()
    ids = [one["id"], two["id"]]
    path = f"/tasks/{one['id']}"

    def rest(call: str, body: object = None) -> dict[str, Any]:
        answer = gateway.call(call, body)
        assert answer.status == 200, answer.body
        found: dict[str, Any] = answer.json
        return found

    assert rest(f"GET {path}") == written(grpc_stub.GetTask(pb.GetTaskRequest(id=one["id"])))
    batch = grpc_stub.BatchGetTasks(pb.BatchGetTasksRequest(ids=ids))
    assert rest(f"GET /tasks:batchGet?ids={ids[0]}&ids={ids[1]}") == written(batch)
    stats = written(grpc_stub.GetTaskStats(pb.GetTaskStatsRequest()))
    assert rest("GET /tasks/stats/summary") | {"as_of": ""} == stats | {"as_of": ""}
    events = grpc_stub.ListTaskEvents(pb.ListTaskEventsRequest(task_id=one["id"]))
    assert rest(f"GET {path}/events") == written(events)

    made = rest("POST /tasks:batchCreate", {"requests": [{"task": {"title": "b"}}] * 2})["tasks"]
    changes = [
        {"task": {"id": made["id"], "title": "c", "description": "x"}, "update_mask": "title"}
        for made in made
    ]
    updated = rest("POST /tasks:batchUpdate", {"requests": changes})["tasks"]
    assert [(task["title"], task["description"]) for task in updated] == [("c", "")] * 2
    requests = [
        {"id": made["id"], "etag": now["etag"]} for made, now in zip(made, updated, strict=True)
    ]
    deleted = rest("POST /tasks:batchDelete", {"requests": requests})["tasks"]
    assert all("deleted_at" in task for task in deleted)
    restored = rest(f"POST /tasks/{made[0]['id']}:undelete", {})
    stored = grpc_stub.GetTask(pb.GetTaskRequest(id=made[0]["id"]))
    assert restored == written(stored)
    counted = rest("POST /tasks:purge", {"filter": f'title="{uuid.uuid4()}"'})
    assert counted["purge_count"] == 0
