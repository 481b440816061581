"""Errors: a class for each reason of the contract, and what each says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest

from server.calls import statuses
from servers import Failure, failing
from taskservice.v1.error_reason_pb2 import ErrorReason
from taskservice_client import InternalError, Task, TaskClient, TaskServiceError, errors

ID = "01a21b10-defa-776c-b031-167c29da6c00"
CODES = {code.value[0]: code for code in grpc.StatusCode}
REASONS = {row.reason: CODES[row.code] for row in statuses.TABLE.values()}
WITHOUT_A_CLASS = {"REQUEST_MISSING"}  # A client that sends no request.


CALLS: dict[str, Callable[[TaskClient], object]] = {
    "read": lambda client: client.get(ID),
    "write": lambda client: client.update(ID, title="a task"),
    "delete": lambda client: client.delete(ID),
    "list": lambda client: list(client.list()),
    "history": lambda client: list(client.history(ID)),
    "batch": lambda client: client.create_many([Task(title="a task")]),
    "batch of deletions": lambda client: client.delete_many([ID]),
    "stats": lambda client: client.stats(),
    "purge": lambda client: client.purge("deleted_at:*"),
    "watch": lambda client: next(client.watch()),
}


def raised_by(failure: Failure) -> TaskServiceError:
    """The error of a call that ends with this failure: the delay before a retry is too long."""
    options = [("grpc.enable_retries", 0)]
    with (
        failing(failure._replace(retry_after=30)) as (address, _),
        TaskClient(address, timeout=20, options=options) as client,
        pytest.raises(TaskServiceError) as raised,
    ):
        client.purge("deleted_at:*")
    return raised.value


@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_has_a_class(reason: str) -> None:
    error = raised_by(Failure(REASONS[reason], reason))
    assert (error.code, error.reason) == (REASONS[reason], reason)
    assert isinstance(error, InternalError) == (reason in WITHOUT_A_CLASS)


def test_every_reason_of_the_contract_is_tested() -> None:
    names = {name.removeprefix("ERROR_REASON_") for name in ErrorReason.DESCRIPTOR.values_by_name}
    assert names - REASONS.keys() == {"UNSPECIFIED", "INTERNAL"}


def test_an_unknown_reason_is_treated_by_its_code() -> None:
    error = raised_by(Failure(grpc.StatusCode.FAILED_PRECONDITION, "NEW_REASON"))
    assert type(error) is errors.PreconditionFailed
    assert error.reason == "NEW_REASON"


def test_an_error_without_details_is_treated_by_its_code() -> None:
    error = raised_by(Failure(grpc.StatusCode.PERMISSION_DENIED))
    assert type(error) is errors.PermissionDenied
    assert error.reason == ""


def test_an_error_says_what_to_do() -> None:
    error = raised_by(Failure(grpc.StatusCode.NOT_FOUND, "TASK_NOT_FOUND"))
    told = f"as told (NOT_FOUND, TASK_NOT_FOUND, request {error.request_id})."
    assert str(error) == f"{told} {error.advice}"


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_every_error_has_the_request_id_of_its_call(call: Callable[[TaskClient], object]) -> None:
    refused = Failure(grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")
    with (
        failing(refused) as (address, server),
        TaskClient(address) as client,
        pytest.raises(TaskServiceError) as raised,
    ):
        call(client)
    assert len(raised.value.request_id) >= 32
    assert raised.value.request_id == server.received[0].metadata["x-request-id"]
    assert raised.value.request_id in str(raised.value)


def test_the_error_of_health_has_a_request_id() -> None:
    with TaskClient("127.0.0.1:1") as client, pytest.raises(TaskServiceError) as raised:
        client.health(timeout=0.1)
    assert raised.value.request_id


def test_a_request_id_of_an_interceptor_is_sent() -> None:
    class Interceptor(grpc.UnaryUnaryClientInterceptor):
        def intercept_unary_unary(
            self, continuation: Callable[..., Any], details: Any, request: Any
        ) -> Any:
            own = details._replace(metadata=[("x-request-id", "own")])
            return continuation(own, request)

    with (
        failing() as (address, server),
        TaskClient(address, interceptors=[Interceptor()]) as client,
    ):
        client.get(ID)
    assert server.received[0].metadata["x-request-id"] == "own"


def test_details_of_another_program_are_ignored() -> None:
    error = raised_by(Failure(grpc.StatusCode.PERMISSION_DENIED, details=b"\xff\xff"))
    assert (error.code, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, "")


def test_every_error_is_drawn_in_the_tree() -> None:
    kinds = [
        name
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, TaskServiceError)
    ]
    assert errors.__doc__ is not None
    assert [name for name in kinds if name not in errors.__doc__] == []
