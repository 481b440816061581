"""Bodies of every kind: what the gateway reads, the transcoder reads, and nothing breaks it."""

import json
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from hypothesis import given
from hypothesis import strategies as st

from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import UpdateTaskRequest
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.gateway.conftest import CreateTask
from tests.support.rest import JSON, Gateway

FIELDS = {
    "title": st.text('ab"\\/{}[],: é😀', min_size=1, max_size=9).map(lambda text: f"x{text}x"),
    "description": st.just("") | st.text('ab"\\{}[]:,\n\té😀', max_size=9),
    "assigned_to": st.sampled_from(["", "ann", '"},{"title":"x']),
    "priority": st.sampled_from(["TASK_PRIORITY_LOW", "TASK_PRIORITY_URGENT"]),
    "tags": st.lists(st.sampled_from(["a", "b}", '"title":']), unique=True, max_size=3),
    "due_date": st.none() | st.just("2200-01-01T00:00:00Z"),
}
CHANGES = st.fixed_dictionaries({}, optional=FIELDS)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5) | st.sampled_from(sorted(FIELDS)), inner, max_size=3)
    ),
    max_leaves=8,
)
FRAGMENTS = [
    *('{"title":"t"', "{", "}", "[", "]", ",", ":", '"', "\\", "'", '"title"', "title", "null"),
    *('"due_date":null', '"\\u0069d"', '"id":"x"', "1e9", "-", "\0", "\n", "/*", "é", "\\ud800"),
]


@given(changes=CHANGES, form=st.sampled_from([{}, {"indent": 1}, {"ensure_ascii": False}]))
def test_a_patch_changes_what_the_same_mask_changes(
    gateway: Gateway,
    task: CreateTask,
    grpc_stub: TaskServiceStub,
    changes: dict[str, Any],
    form: dict[str, Any],
) -> None:
    before = {"description": "d", "assigned_to": "bob", "tags": ["old"]}
    by_rest, by_grpc = task(**before), task(**before)
    body = json.dumps(changes, **form).encode()
    answer = gateway.call(f"PATCH /tasks/{by_rest['id']}", body)
    assert answer.status == 200, answer.body
    message = Task(id=by_grpc["id"])
    for name, value in changes.items():
        if name == "due_date" and value:
            message.due_date.FromJsonString(value)
        elif name == "tags":
            message.tags.extend(value)
        elif value is not None:
            setattr(message, name, value)
    mask = FieldMask(paths=list(changes) or ["id"])
    grpc_stub.UpdateTask(UpdateTaskRequest(task=message, update_mask=mask))
    expected = gateway.call(f"GET /tasks/{by_grpc['id']}").json
    for name in FIELDS:
        assert answer.json.get(name) == expected.get(name), name


@given(
    body=st.binary(max_size=40)
    | st.lists(st.sampled_from(FRAGMENTS), max_size=12).map(lambda parts: "".join(parts).encode())
)
def test_any_bytes_get_an_answer(gateway: Gateway, kept: str, body: bytes) -> None:
    """A body that is accepted is JSON, and every field of it is known."""
    answer = gateway.call(f"PATCH /tasks/{kept}", body)
    assert answer.status in {200, 400}, answer.body
    assert isinstance(answer.json, dict)
    if answer.status == 200:
        assert json.loads(body).keys() <= FIELDS.keys() | {"id", "status"}


@given(body=ANY_JSON, encoded=st.sampled_from(["utf-8", "utf-16", "latin-1"]))
def test_any_json_gets_an_answer(gateway: Gateway, body: object, encoded: str) -> None:
    data = json.dumps(body, ensure_ascii=encoded == "latin-1").encode(encoded, "replace")
    for call in ("POST /tasks?validate_only=true", "POST /tasks:batchUpdate"):
        answer = gateway.call(call, data)
        assert answer.status in {200, 400}, answer.body
        assert isinstance(answer.json, dict)


@pytest.mark.parametrize(
    "body",
    [
        *(
            "{'title':'x'}",
            '{title:"x"}',
            '{title:"x","description":"y"}',
            '{"title":"x",}',
            "null",
        ),
        *(
            '{"title":"x"}{"id":"y"}',
            '{"title":"x"} x',
            '{"title" "x"}',
            "",
            '"x"',
            '{"title":NaN}',
        ),
        '{"title":' * 40 + "1" + "}" * 40,
        '{"tags":' + "[" * 40 + "]" * 40 + "}",
    ],
)
@pytest.mark.parametrize("method", ["PATCH", "PUT"])
def test_what_only_looks_like_json_is_refused(
    gateway: Gateway, kept: str, method: str, body: str
) -> None:
    answer = gateway.call(f"{method} /tasks/{kept}", body)
    assert (answer.status, answer.reason) == (400, "INVALID_REQUEST")


def test_an_escaped_key_counts(gateway: Gateway, task: CreateTask) -> None:
    created = task(description="d")
    answer = gateway.call(f"PATCH /tasks/{created['id']}", '{"\\u0064escription": ""}')
    assert (answer.status, answer.json["description"]) == (200, "")


def test_the_last_of_two_equal_keys_counts(gateway: Gateway, task: CreateTask) -> None:
    body = '{"description": "one", "description": "two"}'
    assert gateway.call(f"PATCH /tasks/{task()['id']}", body).json["description"] == "two"


@pytest.mark.parametrize("name", ["größe", "😀", "a\x00b", 'quo"te', "\x7f"])
def test_any_unknown_name_is_readable_in_the_error(gateway: Gateway, name: str) -> None:
    body = json.dumps({name: 1}, ensure_ascii=False).encode()
    (violation,) = gateway.call("POST /tasks", body).json["details"][1]["field_violations"]
    assert violation["field"] == f"task.{name}"


@pytest.mark.parametrize("name", [b"\xff", b"\xed\xa0\x80", b"\xc0\xaf", b"\xc3", b"n" * 300])
def test_an_unreadable_name_is_not_repeated(gateway: Gateway, name: bytes) -> None:
    answer = gateway.call("POST /tasks", b'{"' + name + b'": 1}')
    assert (answer.status, answer.reason) == (400, "INVALID_REQUEST")
    assert len(answer.body) < 1000


@pytest.mark.parametrize(
    "query", ["update_mask=title", "updateMask=title", "update%5Fmask=title", "x=1&update_mask=*"]
)
def test_no_spelling_of_a_mask_is_lost(gateway: Gateway, task: CreateTask, query: str) -> None:
    """A mask of the query is the only one, and PUT takes none but `*`."""
    created = task(description="d")
    body = {"title": "other", "description": "new"}
    answer = gateway.call(f"PATCH /tasks/{created['id']}?{query}", body)
    if query.startswith("x"):
        assert (answer.status, answer.reason) == (400, "INVALID_REQUEST")
        return
    assert (answer.json["title"], answer.json["description"]) == ("other", "d")
    assert gateway.call(f"PUT /tasks/{created['id']}?{query}", body).status == 400


def test_a_body_larger_than_a_batch_is_refused(gateway: Gateway) -> None:
    for size in (3_300_000, 5_000_000, 9_000_000):
        body = json.dumps({"requests": [{"task": {"title": "x" * size}}]})
        answer = gateway.call("POST /tasks:batchCreate", body, JSON)
        assert (answer.status, answer.reason) == (413, "REQUEST_TOO_LARGE")
