"""gRPC-Web and gRPC by the gateway."""

import struct

import grpc
import pytest

from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    CreateTaskRequest,
    GetTaskRequest,
    WatchTasksRequest,
    WatchTasksResponse,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.gateway.conftest import ORIGIN
from tests.gateway.test_rest import OTHER_ID
from tests.support.errors import NOT_FOUND
from tests.support.rest import Answer, Gateway

SERVICE = "/taskservice.v1.TaskService"
WEB = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1", "origin": ORIGIN}


def frames(body: bytes) -> list[tuple[int, bytes]]:
    """Return the frames of a gRPC-Web body: kind and content."""
    found = []
    while body:
        kind, length = struct.unpack(">BI", body[:5])
        found.append((kind, body[5 : 5 + length]))
        body = body[5 + length :]
    return found


def web_call(gateway: Gateway, method: str, message: bytes) -> Answer:
    return gateway.call(
        f"POST {SERVICE}/{method}", struct.pack(">BI", 0, len(message)) + message, WEB
    )


def test_a_call_by_grpc_web_has_its_message_and_its_status(gateway: Gateway) -> None:
    request = CreateTaskRequest(task=Task(title="of the web"))
    answer = web_call(gateway, "CreateTask", request.SerializeToString())
    (data, message), (trailers, text) = frames(answer.body)
    assert (data, trailers) == (0, 0x80)
    assert Task.FromString(message).title == "of the web"
    assert b"grpc-status:0" in text
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert not answer.headers.keys() & {"task-id", "etag", "x-taskservice-rest"}


def test_an_error_by_grpc_web_has_its_code(gateway: Gateway) -> None:
    answer = web_call(gateway, "GetTask", GetTaskRequest(id=OTHER_ID).SerializeToString())
    status = answer.headers.get("grpc-status") or answer.body.decode("latin-1")
    assert "5" in status
    assert "grpc-status" in answer.headers["access-control-expose-headers"]


def test_a_client_of_grpc_may_use_the_gateway(gateway: Gateway) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{gateway.port}") as channel:
        stub = TaskServiceStub(channel)
        watch = stub.WatchTasks(WatchTasksRequest(send_initial_tasks=True))
        created = stub.CreateTask(CreateTaskRequest(task=Task(title="one")))
        assert any(
            response.type == WatchTasksResponse.TYPE_ADDED and response.task == created
            for response in watch
        )
        watch.cancel()
        with pytest.raises(grpc.RpcError) as failure:
            stub.GetTask(GetTaskRequest(id=OTHER_ID))
        assert failure.value.code() is NOT_FOUND
