"""Reflection serves our contract and what it imports, and nothing else of what is loaded."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import jwt
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha.reflection_pb2 import (
    ServerReflectionRequest,
    ServerReflectionResponse,
)

from server.settings import Settings
from tests.conftest import running_worker
from tests.credentials import SECRET_KEY, authorised, claims

Ask = Callable[..., ServerReflectionResponse]


@pytest.fixture(params=["v1", "v1alpha"])
def ask(request: pytest.FixtureRequest, channel: grpc.Channel) -> Ask:
    return asking(channel, request.param)


def asking(channel: grpc.Channel, version: str) -> Ask:
    call = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=ServerReflectionRequest.SerializeToString,
        response_deserializer=ServerReflectionResponse.FromString,
    )
    return lambda **question: next(iter(call(iter([ServerReflectionRequest(**question)]))))


def files(response: ServerReflectionResponse) -> set[str]:
    return {
        FileDescriptorProto.FromString(file).name
        for file in response.file_descriptor_response.file_descriptor_proto
    }


def test_the_service_is_listed(ask: Ask) -> None:
    services = ask(list_services="").list_services_response.service
    assert [service.name for service in services] == ["taskservice.v1.TaskService"]


def test_a_symbol_comes_with_all_it_needs(ask: Ask) -> None:
    assert files(ask(file_containing_symbol="taskservice.v1.TaskService")) == {
        "taskservice/v1/task_service.proto",
        "taskservice/v1/task.proto",
        "taskservice/v1/task_event.proto",
        "buf/validate/validate.proto",
        "google/api/annotations.proto",
        "google/api/field_behavior.proto",
        "google/api/http.proto",
        "google/protobuf/descriptor.proto",
        "google/protobuf/duration.proto",
        "google/protobuf/field_mask.proto",
        "google/protobuf/struct.proto",
        "google/protobuf/timestamp.proto",
    }


@pytest.mark.parametrize(
    "name", ["grpc/health/v1/health.proto", "google/rpc/error_details.proto", "nonsense"]
)
def test_other_files_are_not_there(ask: Ask, name: str) -> None:
    """Both are loaded in this process."""
    error = ask(file_by_filename=name).error_response
    assert error.error_code == grpc.StatusCode.NOT_FOUND.value[0]


@pytest.mark.parametrize(
    ("mode", "code"),
    [
        ("off", grpc.StatusCode.UNIMPLEMENTED),
        ("authenticated", grpc.StatusCode.UNAUTHENTICATED),
    ],
)
@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_is_not_for_everybody_if_the_settings_say_so(
    settings: Settings, database_url: str, mode: str, code: grpc.StatusCode, version: str
) -> None:
    """The contract tells an attacker what there is to attack."""
    own = settings.model_copy(update={"reflection": mode, "auth_mode": "jwt"})
    with running_worker(own, database_url) as channel, pytest.raises(grpc.RpcError) as raised:
        asking(channel, version)(list_services="")
    assert raised.value.code() is code


def test_reflection_is_for_whom_a_token_names(token_settings: Settings, database_url: str) -> None:
    own = token_settings.model_copy(update={"reflection": "authenticated"})
    token = jwt.encode(claims(iss=None, aud=None), SECRET_KEY, "HS256")
    with running_worker(own, database_url) as channel:
        ask = asking(authorised(channel, token), "v1")
        assert ask(list_services="").list_services_response.service
