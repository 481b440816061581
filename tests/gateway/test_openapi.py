"""Answers of the gateway are as the OpenAPI document describes them, operation by operation."""

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

import pytest
from openapi_schema_validator import OAS31Validator

from gateway.documents.schemas import EXAMPLE_ID
from server.access.authorization import NEEDED
from tests.gateway.conftest import CreateTask
from tests.gateway.test_documents import OPENAPI, operations
from tests.support.rest import JSON, Answer, Gateway

OTHER_ID = "0198c5c0-0000-7000-8000-000000000000"

Document: TypeAlias = dict[str, Any]


@pytest.fixture(scope="module")
def openapi() -> Document:
    document: Document = json.loads(OPENAPI.read_text())
    return document


def assert_valid(openapi: Document, schema: Mapping[str, Any], value: object) -> None:
    validator = OAS31Validator({**schema, "components": openapi["components"]})
    assert [error.message for error in validator.iter_errors(value)] == []


def assert_described(openapi: Document, operation: str, status: int, answer: Answer) -> None:
    """Check the status, the headers, the media type and the body of an answer."""
    assert answer.status == status, answer.body
    described = operations(openapi)[operation]["responses"][str(status)]
    assert {name.lower() for name in described.get("headers", {})} <= answer.headers.keys()
    if content := described.get("content"):
        assert_valid(openapi, content[answer.headers["content-type"]]["schema"], answer.json)
    else:
        assert answer.body == b""


def test_a_new_task_is_as_described(openapi: Document, gateway: Gateway) -> None:
    fields = {"title": "one", "tags": ["a"], "due_date": "2200-01-01T00:00:00Z"}
    assert_described(openapi, "CreateTask", 201, gateway.call("POST /tasks", fields))


def test_every_read_is_as_described(openapi: Document, gateway: Gateway, task: CreateTask) -> None:
    path = f"/tasks/{task()['id']}"
    for operation, request in {
        "GetTask": path,
        "ListTaskEvents": f"{path}/events",
        "ListTasks": "/tasks?page_size=1&include_total_size=true",
        "GetTaskStats": "/tasks/stats/summary",
        "BatchGetTasks": f"/tasks:batchGet?ids={path.rpartition('/')[2]}",
        "CheckHealth": "/health",
    }.items():
        assert_described(openapi, operation, 200, gateway.call(f"GET {request}"))


def test_every_write_is_as_described(openapi: Document, gateway: Gateway, task: CreateTask) -> None:
    id_ = task()["id"]
    for operation, request, body in (
        ("UpdateTask", f"PATCH /tasks/{id_}", {"status": "TASK_STATUS_COMPLETED"}),
        ("ReplaceTask", f"PUT /tasks/{id_}", {"title": "other"}),
        ("BatchCreateTasks", "POST /tasks:batchCreate", {"requests": [{"task": {"title": "x"}}]}),
        ("BatchUpdateTasks", "POST /tasks:batchUpdate", {"requests": [{"task": {"id": id_}}]}),
        ("BatchDeleteTasks", "POST /tasks:batchDelete", {"requests": [{"id": id_}]}),
        ("UndeleteTask", f"POST /tasks/{id_}:undelete", {}),
        ("PurgeTasks", "POST /tasks:purge", {"filter": "deleted_at:*"}),
    ):
        media = operations(openapi)[operation]["requestBody"]["content"]["application/json"]
        assert_valid(openapi, media["schema"], body)
        assert_described(openapi, operation, 200, gateway.call(request, body))


def test_answers_without_a_body_are_as_described(
    openapi: Document, gateway: Gateway, task: CreateTask
) -> None:
    created = task()
    request = f"/tasks/{created['id']}"
    known = gateway.call(f"GET {request}", headers={"if-none-match": created["etag"]})
    assert_described(openapi, "GetTask", 304, known)
    assert_described(openapi, "DeleteTask", 204, gateway.call(f"DELETE {request}"))


def test_errors_are_as_described(openapi: Document, gateway: Gateway, task: CreateTask) -> None:
    path, title = f"/tasks/{task()['id']}", {"title": "other"}
    stale, text = {**JSON, "if-match": '"stale"'}, {"content-type": "text/plain"}
    for operation, status, answer in (
        ("CreateTask", 400, gateway.call("POST /tasks", {"title": ""})),
        ("GetTask", 404, gateway.call(f"GET /tasks/{OTHER_ID}")),
        ("UndeleteTask", 409, gateway.call(f"POST {path}:undelete", {})),
        ("UpdateTask", 412, gateway.call(f"PATCH {path}", title, stale)),
        ("DeleteTask", 412, gateway.call(f"DELETE {path}", headers=stale)),
        ("CreateTask", 413, gateway.call("POST /tasks", {"description": "x" * 300_000})),
        ("ReplaceTask", 415, gateway.call(f"PUT {path}", title, text)),
    ):
        assert_described(openapi, operation, status, answer)


def test_an_update_in_a_batch_needs_an_id(openapi: Document) -> None:
    schema = {"$ref": "#/components/schemas/UpdateTaskRequest"}
    assert_valid(openapi, schema, {"task": {"id": OTHER_ID, "title": "x"}})
    with pytest.raises(AssertionError, match="'id' is a required property"):
        assert_valid(openapi, schema, {"task": {"title": "x"}})


def test_the_nil_and_the_max_uuid_are_not_valid_ids(openapi: Document) -> None:
    fields = openapi["components"]["schemas"]["CreateTaskRequest"]["properties"]
    for name in ("task_id", "request_id"):
        assert_valid(openapi, fields[name], OTHER_ID)
        for digit in "0fF":
            with pytest.raises(AssertionError, match="should not be valid"):
                assert_valid(
                    openapi,
                    fields[name],
                    OTHER_ID.translate({ord(c): digit for c in "0123456789abcdef"}),
                )


def test_every_operation_names_its_scopes(openapi: Document) -> None:
    methods = operations(openapi)
    found = {name: set(methods[name]["security"][0]["bearer"]) for name in NEEDED}
    assert found == {name: set(scopes) for name, scopes in NEEDED.items()}


def test_every_error_has_examples_of_its_reasons(openapi: Document) -> None:
    examples = openapi["components"]["examples"]
    for example in examples.values():
        assert_valid(openapi, {"$ref": "#/components/schemas/Status"}, example["value"])
    for operation in operations(openapi).values():
        for answer in operation["responses"].values():
            lines = [line for line in answer["description"].splitlines() if line.startswith("* ")]
            named = answer.get("content", {}).get("application/json", {}).get("examples", {})
            assert list(named) == [line[2:].partition(":")[0] for line in lines]
            assert named.keys() <= examples.keys()


def test_examples_of_errors_are_what_the_gateway_answers(
    openapi: Document, gateway: Gateway
) -> None:
    examples = openapi["components"]["examples"]
    text = {"content-type": "text/plain"}
    for reason, answer in {
        "TASK_NOT_FOUND": gateway.call(f"GET /tasks/{EXAMPLE_ID}"),
        "INVALID_REQUEST": gateway.call("POST /tasks", {"title": " "}),
        "MEDIA_TYPE_NOT_SUPPORTED": gateway.call("POST /tasks", {}, text),
    }.items():
        assert answer.json == examples[reason]["value"]
