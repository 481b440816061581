"""Verbs, masks, entity tags, errors and origins of the REST surface."""

import pytest

from taskservice.v1.task_service_pb2 import GetTaskRequest
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.gateway.conftest import ORIGIN, CreateTask
from tests.support.rest import JSON, Gateway
from tests.support.service import ServiceProcess, wait_until

OTHER_ID = "0198c5c0-0000-7000-8000-000000000000"


def test_a_created_task_has_its_location_and_its_etag(gateway: Gateway) -> None:
    answer = gateway.call("POST /tasks", {"title": "one", "tags": ["a"]})
    assert answer.status == 201
    assert answer.headers["location"] == f"/tasks/{answer.json['id']}"
    assert answer.headers["etag"] == answer.json["etag"]
    assert gateway.call(f"GET {answer.headers['location']}").json == answer.json


def test_a_validated_request_creates_nothing(gateway: Gateway) -> None:
    answer = gateway.call("POST /tasks?validate_only=true", {"title": "one"})
    assert answer.status == 200
    assert not answer.headers.keys() & {"location", "etag"}


def test_patch_changes_the_fields_that_the_body_names(gateway: Gateway, task: CreateTask) -> None:
    """Also those that are empty or null, and no others."""
    created = task(description="x", assigned_to="ann", due_date="2200-01-01T00:00:00Z")
    changes = {"description": "", "due_date": None, "assignedTo": "bob"}
    answer = gateway.call(f"PATCH /tasks/{created['id']}", changes)
    assert answer.status == 200
    assert answer.json["description"] == ""
    assert answer.json["assigned_to"] == "bob"
    assert "due_date" not in answer.json
    assert answer.json["title"] == "a task"


def test_patch_without_a_field_changes_nothing(gateway: Gateway, task: CreateTask) -> None:
    created = task()
    answer = gateway.call(f"PATCH /tasks/{created['id']}", {})
    assert (answer.status, answer.json["etag"]) == (200, created["etag"])


def test_patch_takes_a_mask_from_the_query(gateway: Gateway, task: CreateTask) -> None:
    created = task(description="x")
    path = f"/tasks/{created['id']}?update_mask=description"
    answer = gateway.call(f"PATCH {path}", {"title": "other"})
    assert (answer.json["title"], answer.json["description"]) == ("a task", "")


def test_patch_takes_a_merge_patch(gateway: Gateway, task: CreateTask) -> None:
    media = {"content-type": "application/merge-patch+json; charset=utf-8"}
    answer = gateway.call(f"PATCH /tasks/{task()['id']}", {"title": "other"}, media)
    assert (answer.status, answer.json["title"]) == (200, "other")


def test_put_replaces_the_task(gateway: Gateway, task: CreateTask) -> None:
    created = task(description="x", assigned_to="ann")
    answer = gateway.call(f"PUT /tasks/{created['id']}", {"title": "other"})
    assert answer.status == 200
    assert [answer.json[name] for name in ("title", "description", "assigned_to")] == [
        "other",
        "",
        "",
    ]


@pytest.mark.parametrize("query", ["", "?update_mask=*", "?update_mask=%2A"])
def test_put_needs_a_title(gateway: Gateway, task: CreateTask, query: str) -> None:
    answer = gateway.call(f"PUT /tasks/{task()['id']}{query}", {"description": "x"})
    assert (answer.status, answer.reason) == (400, "INVALID_REQUEST")


def test_put_refuses_a_mask(gateway: Gateway, task: CreateTask) -> None:
    answer = gateway.call(f"PUT /tasks/{task()['id']}?update_mask=title", {"title": "other"})
    assert (answer.status, answer.reason) == (400, "INVALID_REQUEST")


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
def test_another_id_in_the_body_is_refused(
    gateway: Gateway, task: CreateTask, grpc_stub: TaskServiceStub, method: str
) -> None:
    """It must not write the other task."""
    one, other = task(), task()
    body = {"id": other["id"], "title": "mixed"}
    answer = gateway.call(f"{method} /tasks/{one['id']}", body)
    assert (answer.status, answer.reason) == (400, "INVALID_REQUEST")
    for created in (one, other):
        assert grpc_stub.GetTask(GetTaskRequest(id=created["id"])).title == "a task"


@pytest.mark.parametrize(
    ("call", "body", "field"),
    [
        ("POST /tasks", {"titel": "x"}, "task.titel"),
        ("PATCH /tasks/{id}", {"title": "x", "extra": {"a": [1]}}, "task.extra"),
        ("PUT /tasks/{id}", {"title": "x", "\\": 1}, "task.\\"),
        ("POST /tasks:batchCreate", {"requests": [{}, {"task": {"no": 1}}]}, "requests[1].task.no"),
        ("POST /tasks:batchDelete", {"ids": []}, "ids"),
        ("POST /tasks/{id}:undelete", {"etags": ""}, "etags"),
        ("POST /tasks:purge", {"forced": True}, "forced"),
    ],
)
def test_an_unknown_field_is_named(
    gateway: Gateway, task: CreateTask, call: str, body: object, field: str
) -> None:
    answer = gateway.call(call.format(id=task()["id"]), body)
    assert (answer.status, answer.reason) == (400, "INVALID_REQUEST")
    (violation,) = answer.json["details"][1]["field_violations"]
    assert (violation["field"], violation["reason"]) == (field, "UNKNOWN_FIELD")


def test_a_deleted_task_has_no_answer(gateway: Gateway, task: CreateTask) -> None:
    created = task()
    answer = gateway.call(f"DELETE /tasks/{created['id']}")
    assert (answer.status, answer.body) == (204, b"")
    again = gateway.call(f"DELETE /tasks/{created['id']}")
    assert (again.status, again.reason) == (404, "TASK_NOT_FOUND")


@pytest.mark.parametrize(
    ("method", "body"), [("PUT", {"title": "b"}), ("PATCH", {"title": "b"}), ("DELETE", None)]
)
def test_a_stale_etag_is_a_failed_precondition(
    gateway: Gateway, task: CreateTask, method: str, body: object
) -> None:
    created = task()
    path = f"/tasks/{created['id']}"
    written = gateway.call(f"PATCH {path}", {"title": "written"})
    stale = gateway.call(f"{method} {path}", body, JSON | {"if-match": created["etag"]})
    assert (stale.status, stale.reason) == (412, "ETAG_MISMATCH")
    weak = gateway.call(
        f"{method} {path}", body, JSON | {"if-match": f"W/{written.headers['etag']}"}
    )
    assert weak.status == 412
    current = gateway.call(f"{method} {path}", body, JSON | {"if-match": written.headers["etag"]})
    assert current.status in {200, 204}


def test_a_stale_etag_of_the_body_is_a_conflict(gateway: Gateway, task: CreateTask) -> None:
    created = task()
    path = f"/tasks/{created['id']}"
    gateway.call(f"PATCH {path}", {"title": "written"})
    answer = gateway.call(f"PATCH {path}", {"title": "b", "etag": created["etag"]})
    assert (answer.status, answer.reason) == (409, "ETAG_MISMATCH")


@pytest.mark.parametrize("condition", ["{etag}", '"other", {etag}', "W/{etag}", "*"])
def test_a_known_task_is_not_sent_again(gateway: Gateway, task: CreateTask, condition: str) -> None:
    created = task()
    headers = {"if-none-match": condition.format(etag=created["etag"])}
    answer = gateway.call(f"GET /tasks/{created['id']}", headers=headers)
    assert (answer.status, answer.body) == (304, b"")
    assert answer.headers["etag"] == created["etag"]
    other = gateway.call(f"GET /tasks/{created['id']}", headers={"if-none-match": '"other"'})
    assert other.status == 200


def test_head_is_get_without_a_body(gateway: Gateway, task: CreateTask) -> None:
    created = task()
    answer = gateway.call(f"HEAD /tasks/{created['id']}")
    assert (answer.status, answer.headers["etag"], answer.body) == (200, created["etag"], b"")
    assert gateway.call(f"HEAD /tasks/{OTHER_ID}").status == 404


@pytest.mark.parametrize(
    ("call", "body", "status", "reason"),
    [
        ("GET /nothing", None, 404, "NO_SUCH_ROUTE"),
        ("DELETE /tasks", None, 404, "NO_SUCH_ROUTE"),
        ("GET /tasks?bogus=1", None, 400, "INVALID_REQUEST"),
        ("GET /tasks?page_size=many", None, 400, "INVALID_REQUEST"),
        ("GET /tasks?page_size=-1", None, 400, "INVALID_REQUEST"),
        ("GET /tasks/no-uuid", None, 400, "INVALID_REQUEST"),
        ("POST /tasks", '{"title": "x", bad', 400, "INVALID_REQUEST"),
        ("POST /tasks", "[]", 400, "INVALID_REQUEST"),
        ("POST /tasks", "", 400, "INVALID_REQUEST"),
        ("POST /tasks", {"title": "x", "status": "NOPE"}, 400, "INVALID_REQUEST"),
        ("POST /tasks", {"title": " "}, 400, "INVALID_REQUEST"),
        (f"GET /tasks/{OTHER_ID}", None, 404, "TASK_NOT_FOUND"),
        ("POST /tasks", {"title": "x", "description": "y" * 400_000}, 413, "REQUEST_TOO_LARGE"),
        ("POST /tasks", {"title": "y" * 9_000_000}, 413, "REQUEST_TOO_LARGE"),
    ],
)
def test_every_error_is_a_status_in_json(
    gateway: Gateway, call: str, body: object, status: int, reason: str
) -> None:
    answer = gateway.call(call, body)
    assert (answer.status, answer.reason) == (status, reason)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json["details"][0]["domain"] == "taskservice"
    assert answer.json.keys() == {"code", "message", "details"}
    assert not [name for name in answer.headers if name.startswith("grpc-")]


@pytest.mark.parametrize("media", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_that_needs_no_preflight_is_refused(gateway: Gateway, media: str) -> None:
    headers = {"content-type": media} if media else {}
    answer = gateway.call("POST /tasks", '{"title": "x"}', headers)
    assert (answer.status, answer.reason) == (415, "MEDIA_TYPE_NOT_SUPPORTED")


def test_a_plus_in_a_query_is_a_space(gateway: Gateway, task: CreateTask) -> None:
    created = task(title="plus and space")
    answer = gateway.call("GET /tasks?filter=title+%3D+%22plus+and+space%22")
    assert [found["id"] for found in answer.json["tasks"]] == [created["id"]]


def test_an_empty_list_has_its_fields(gateway: Gateway) -> None:
    answer = gateway.call("GET /tasks?filter=title%3D%22none%22")
    assert answer.json == {"tasks": [], "next_page_token": "", "total_size": 0}


def test_a_client_cannot_call_as_the_gateway(gateway: Gateway, task: CreateTask) -> None:
    """Nor does a call by REST fail because a client sends the gateway's header."""
    headers = {"x-taskservice-rest": "2"}
    answer = gateway.call(f"GET /tasks/{task()['id']}", headers=headers)
    assert answer.status == 200
    assert not answer.headers.keys() & {"task-id", "x-taskservice-rest"}


def preflight(gateway: Gateway, origin: str) -> dict[str, str]:
    headers = {"origin": origin, "access-control-request-method": "PATCH"}
    answer = gateway.call("OPTIONS /tasks", headers=headers)
    return {name: value for name, value in answer.headers.items() if "access-control" in name}


def test_an_allowed_origin_passes_the_preflight(gateway: Gateway) -> None:
    allowed = preflight(gateway, ORIGIN)
    assert allowed["access-control-allow-origin"] == ORIGIN
    assert "PATCH" in allowed["access-control-allow-methods"]
    assert "if-match" in allowed["access-control-allow-headers"]


@pytest.mark.parametrize("origin", ["https://evil.example", f"{ORIGIN}.evil.example", "null"])
def test_a_foreign_origin_fails_the_preflight(gateway: Gateway, origin: str) -> None:
    assert preflight(gateway, origin) == {}
    answer = gateway.call("GET /tasks", headers={"origin": origin})
    assert "access-control-allow-origin" not in answer.headers


def test_the_trace_and_the_request_id_are_passed_on(gateway: Gateway) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    sent = {"traceparent": f"00-{trace}-b7ad6b7169203331-01", "x-request-id": "an-id"}
    answer = gateway.call("POST /tasks", {"title": "traced"}, JSON | sent)
    assert answer.headers["x-request-id"] == "an-id"
    events = gateway.call(f"GET {answer.headers['location']}/events").json["events"]
    assert [event["trace_id"] for event in events] == [trace]
    wait_until(lambda: f"00-{trace}" in gateway.log.read_text(), "the access log has the trace")


def test_health_follows_the_service(gateway: Gateway, service: ServiceProcess) -> None:
    """The last test of the module: it ends the service."""
    assert gateway.call("GET /health").json == {"status": "SERVING"}
    service.stop()
    wait_until(lambda: not gateway.is_healthy(), "the gateway is not healthy")
    for path in ("/health", "/tasks"):
        answer = gateway.call(f"GET {path}")
        assert (answer.status, answer.reason) == (503, "SERVICE_UNAVAILABLE")
