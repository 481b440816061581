"""Read errors as a client does: the code and the details."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
EXISTS = grpc.StatusCode.ALREADY_EXISTS
ABORTED = grpc.StatusCode.ABORTED
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
EXPIRED = grpc.StatusCode.OUT_OF_RANGE
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE

Detail = TypeVar("Detail", bound=Message)


class Failure:
    """A failed call; its details can be read once the block that made it is over."""

    error: grpc.RpcError

    def detail(self, kind: type[Detail]) -> Detail:
        """The one detail of this kind."""
        status = rpc_status.from_call(self.error)  # type: ignore[arg-type]
        assert status is not None, "the error has no details"
        found = [any_ for any_ in status.details if any_.Is(kind.DESCRIPTOR)]
        assert len(found) == 1, status
        detail = kind()
        found[0].Unpack(detail)
        return detail

    @property
    def pushback(self) -> str | None:
        """The milliseconds after which gRPC's own retries would try again."""
        trailers: Any = self.error.trailing_metadata()
        return dict(trailers).get("grpc-retry-pushback-ms")

    @property
    def message(self) -> str:
        return str(self.error.details())

    @property
    def info(self) -> error_details_pb2.ErrorInfo:
        return self.detail(error_details_pb2.ErrorInfo)

    @property
    def violations(self) -> dict[str, str]:
        """The field violations: field to reason."""
        violations = self.detail(error_details_pb2.BadRequest).field_violations
        return {violation.field: violation.reason for violation in violations}  # type: ignore[attr-defined]


@contextmanager
def fails(code: grpc.StatusCode, reason: str) -> Iterator[Failure]:
    """The block's call must fail with this code and ErrorInfo."""
    failure = Failure()
    with pytest.raises(grpc.RpcError) as raised:
        yield failure
    failure.error = raised.value
    assert failure.error.code() == code, failure.error
    assert (failure.info.domain, failure.info.reason) == ("taskservice", reason)
