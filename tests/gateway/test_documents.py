"""The documents that are written from the contract."""

import json
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

import gateway.documents
from gateway.documents.contract import Contract, read_contract
from taskservice.v1 import task_service_pb2
from taskservice.v1.error_reason_pb2 import ErrorReason
from tests.support.rest import Gateway

ROOT = Path(gateway.documents.__file__).parents[2]
OPENAPI = ROOT / "gateway" / "static" / "openapi.json"
METHODS = [
    method.name for method in task_service_pb2.DESCRIPTOR.services_by_name["TaskService"].methods
]


@pytest.fixture(scope="module")
def openapi() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(OPENAPI.read_text())
    return document


def operations(openapi: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        item["operationId"]: item for path in openapi["paths"].values() for item in path.values()
    }


def test_the_document_is_valid(openapi: dict[str, Any]) -> None:
    assert [*OpenAPIV31SpecValidator(openapi).iter_errors()] == []


def test_the_gateway_serves_the_document(gateway: Gateway) -> None:
    answer = gateway.call("GET /openapi.json")
    assert answer.headers["content-type"] == "application/json"
    assert answer.body == OPENAPI.read_bytes()


def test_every_method_is_described(openapi: dict[str, Any]) -> None:
    assert set(METHODS) | {"ReplaceTask", "CheckHealth"} == operations(openapi).keys()
    page = (ROOT / "docs" / "api.md").read_text()
    assert [name for name in METHODS if f"\n### {name}\n" not in page] == []


def test_every_reason_is_described(openapi: dict[str, Any]) -> None:
    text = json.dumps(openapi)
    names = [name.removeprefix("ERROR_REASON_") for name in ErrorReason.keys()[1:]]
    assert [name for name in names if f"* {name}:" not in text] == []


def test_what_a_client_writes_differs_by_verb(openapi: dict[str, Any]) -> None:
    schemas = openapi["components"]["schemas"]
    assert schemas["TaskCreate"]["required"] == ["title"]
    assert "required" not in schemas["TaskPatch"]
    assert schemas["TaskPatch"]["properties"]["due_date"]["type"] == ["string", "null"]
    for name in ("TaskCreate", "TaskPatch"):
        assert not schemas[name]["properties"].keys() & {"created_at", "purge_at", "created_by"}


def test_the_rules_of_the_contract_are_limits(openapi: dict[str, Any]) -> None:
    fields = openapi["components"]["schemas"]["TaskCreate"]["properties"]
    assert fields["title"]["maxLength"] == 200
    assert fields["tags"]["maxItems"] == 10
    assert fields["tags"]["items"]["maxLength"] == 50
    assert "TASK_STATUS_UNSPECIFIED" not in fields["status"]["enum"]


def test_statuses_are_those_of_the_verb(openapi: dict[str, Any]) -> None:
    found = {name: item["responses"].keys() for name, item in operations(openapi).items()}
    assert {"200", "201"} <= found["CreateTask"]
    assert "200" not in found["DeleteTask"]
    assert "304" in found["GetTask"]
    assert {"409", "412", "415"} <= found["UpdateTask"] & found["ReplaceTask"]


def test_comments_are_those_of_the_contract() -> None:
    contract: Contract = read_contract()
    assert contract.comments["taskservice.v1.Task.etag"].startswith("Identifies this state")
    assert contract.comments["taskservice.v1.TaskStatus.TASK_STATUS_PENDING"]
