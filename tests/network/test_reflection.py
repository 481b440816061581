"""Reflection: the files that it serves, the credentials it requires, its limits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import jwt
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha.reflection_pb2 import (
    ServerReflectionRequest,
    ServerReflectionResponse,
)
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from server.settings import Settings
from tests.support.credentials import SECRET_KEY, authorised, claims
from tests.support.errors import fails
from tests.support.service import PATIENCE_SECONDS
from tests.support.workers import running_worker

Ask = Callable[..., ServerReflectionResponse]

METHOD = "grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
GOOD: dict[str, Any] = {"iss": None, "aud": None}


@pytest.fixture(params=["v1", "v1alpha"])
def ask(request: pytest.FixtureRequest, channel: grpc.Channel) -> Ask:
    return asking(channel, request.param)


def asking(channel: grpc.Channel, version: str) -> Ask:
    call = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=ServerReflectionRequest.SerializeToString,
        response_deserializer=ServerReflectionResponse.FromString,
    )
    return lambda **question: next(
        iter(call(iter([ServerReflectionRequest(**question)]), timeout=PATIENCE_SECONDS))
    )


def files(response: ServerReflectionResponse) -> set[str]:
    return {
        FileDescriptorProto.FromString(file).name
        for file in response.file_descriptor_response.file_descriptor_proto
    }


def test_the_services_are_listed(ask: Ask) -> None:
    services = ask(list_services="").list_services_response.service
    assert [service.name for service in services] == [
        "grpc.health.v1.Health",
        "taskservice.v1.TaskService",
    ]


def test_a_symbol_comes_with_all_it_needs(ask: Ask) -> None:
    assert files(ask(file_containing_symbol="taskservice.v1.TaskService")) == {
        "taskservice/v1/task_service.proto",
        "taskservice/v1/task.proto",
        "taskservice/v1/task_event.proto",
        "buf/validate/validate.proto",
        "google/api/annotations.proto",
        "google/api/client.proto",
        "google/api/field_behavior.proto",
        "google/api/http.proto",
        "google/api/launch_stage.proto",
        "google/api/resource.proto",
        "google/protobuf/any.proto",
        "google/protobuf/descriptor.proto",
        "google/protobuf/duration.proto",
        "google/protobuf/field_mask.proto",
        "google/protobuf/struct.proto",
        "google/protobuf/timestamp.proto",
        "google/rpc/status.proto",
    }


@pytest.mark.parametrize(
    ("symbol", "file"),
    [
        ("grpc.health.v1.Health", "grpc_health/v1/health.proto"),
        ("google.rpc.Status", "google/rpc/status.proto"),
        ("taskservice.v1.ErrorReason", "taskservice/v1/error_reason.proto"),
        *(
            (f"google.rpc.{detail}", "google/rpc/error_details.proto")
            for detail in (
                "BadRequest",
                "ErrorInfo",
                "PreconditionFailure",
                "QuotaFailure",
                "ResourceInfo",
                "RetryInfo",
            )
        ),
    ],
)
def test_health_and_the_details_of_errors_are_there(ask: Ask, symbol: str, file: str) -> None:
    """A client calls the one, and shows the others in words."""
    assert file in files(ask(file_containing_symbol=symbol))


@pytest.mark.parametrize(
    ("mode", "code"),
    [
        ("off", grpc.StatusCode.UNIMPLEMENTED),
        ("authenticated", grpc.StatusCode.UNAUTHENTICATED),
    ],
)
@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_can_be_switched_off_or_require_credentials(
    settings: Settings, database_url: str, mode: str, code: grpc.StatusCode, version: str
) -> None:
    """The contract would describe the targets to an attacker."""
    own = settings.model_copy(update={"reflection": mode, "auth_mode": "jwt"})
    with running_worker(own, database_url) as channel, pytest.raises(grpc.RpcError) as raised:
        asking(channel, version)(list_services="")
    assert raised.value.code() is code


def test_reflection_accepts_a_valid_token(token_settings: Settings, database_url: str) -> None:
    own = token_settings.model_copy(update={"reflection": "authenticated"})
    token = jwt.encode(claims(**GOOD), SECRET_KEY, "HS256")
    with running_worker(own, database_url) as channel:
        ask = asking(authorised(channel, token), "v1")
        assert ask(list_services="").list_services_response.service


def test_a_guessed_token_at_reflection_is_logged_and_counted(
    token_settings: Settings, database_url: str
) -> None:
    own = token_settings.model_copy(update={"reflection": "authenticated"})

    def count() -> float:
        labels = {"grpc_method": METHOD, "reason": "UNAUTHENTICATED"}
        return REGISTRY.get_sample_value("taskservice_server_call_errors_total", labels) or 0

    before = count()
    with (
        running_worker(own, database_url) as channel,
        capture_logs() as logs,
        fails(grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"),
    ):
        asking(authorised(channel, "a guess"), "v1")(list_services="")
    (line,) = [line for line in logs if line.get("method") == METHOD]
    assert (line["code"], line["reason"]) == ("UNAUTHENTICATED", "UNAUTHENTICATED")
    assert line["peer"].startswith("ipv4:127.0.0.1:")
    assert count() == before + 1


def test_reflection_above_the_rate_says_when_to_retry(
    token_settings: Settings, database_url: str
) -> None:
    limits = {"reflection": "authenticated", "rate_limit_per_second": 1}
    token = jwt.encode(claims(**GOOD), SECRET_KEY, "HS256")
    with (
        running_worker(token_settings.model_copy(update=limits), database_url) as channel,
        fails(grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMIT_EXCEEDED") as failure,
    ):
        ask = asking(authorised(channel, token), "v1")
        for _ in range(1000):
            ask(list_services="")
    assert 0 < int(failure.pushback or 0) <= 1000


def test_silent_streams_do_not_block_other_clients(settings: Settings, database_url: str) -> None:
    """The oldest silent stream is ended."""
    silence = threading.Event()

    def send_nothing() -> Iterator[bytes]:
        silence.wait()
        yield from ()

    with running_worker(settings, database_url) as channel:
        open_stream: Any = channel.stream_stream(f"/{METHOD}")
        streams = [open_stream(send_nothing()) for _ in range(40)]
        try:
            for _ in range(3):
                assert asking(channel, "v1")(list_services="").list_services_response.service
            assert streams[0].code() is grpc.StatusCode.CANCELLED
        finally:
            silence.set()


def test_bytes_that_are_no_request_are_an_invalid_argument(channel: grpc.Channel) -> None:
    with fails(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"):
        call: Any = channel.stream_stream(f"/{METHOD}")
        next(call(iter([b"\xff"])))
