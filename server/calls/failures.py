"""Whatever a call raises becomes a status with details."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import structlog
from google.rpc import code_pb2, status_pb2
from google.rpc.error_details_pb2 import RetryInfo
from grpc_status import rpc_status

from server.calls.current import current_call
from server.calls.interceptor import CallInterceptor, is_out_of_time
from server.calls.statuses import internal_status, reason_of, status_of
from server.errors import RefusedError
from server.telemetry import metrics
from server.telemetry.tracing import add_span_attributes, set_span_error, stack_of
from storage.errors import StatementCancelledError

log = structlog.get_logger()

# The codes that make a server's span an error (OpenTelemetry's conventions for gRPC): the others
# are errors or cancellations of the client.
_SERVER_ERRORS = {
    code_pb2.UNKNOWN,
    code_pb2.DEADLINE_EXCEEDED,
    code_pb2.UNIMPLEMENTED,
    code_pb2.INTERNAL,
    code_pb2.UNAVAILABLE,
    code_pb2.DATA_LOSS,
}


class ErrorInterceptor(CallInterceptor):
    """Turns what a call raises into a status with details; what is unknown into INTERNAL."""

    @contextmanager
    def around(self, method: str, request: Any, context: grpc.ServicerContext) -> Iterator[None]:
        try:
            if isinstance(request, RefusedError):
                raise request  # Before credentials are looked at: this thread has no time for them.
            yield
        except Exception as error:
            context.abort_with_status(_on_the_wire(_answer(error, context)))


def _answer(error: Exception, context: grpc.ServicerContext) -> status_pb2.Status:
    """The status that a caller gets, noted in the log, the metrics and the span."""
    call = current_call()
    call.reason = reason_of(error)
    answer = status_of(error) or internal_status(call.request_id)
    if isinstance(error, StatementCancelledError) and is_out_of_time(context):
        answer.code = code_pb2.DEADLINE_EXCEEDED
    if answer.code == code_pb2.INTERNAL:
        log.error(
            "internal error",
            method=call.method,
            request_id=call.request_id,
            exception=stack_of(error),
        )
    metrics.count_error(call.method, call.reason)
    add_span_attributes({"rpc.grpc.status_code": answer.code, "error.type": call.reason})
    if answer.code in _SERVER_ERRORS:
        set_span_error(error)
    return answer


def _on_the_wire(answer: status_pb2.Status) -> grpc.Status:
    """The status with its details, and for gRPC's own retries when to try again (gRFC A6).

    After RetryInfo's delay; and what is exhausted without one will not do better the next time.
    """
    status: Any = rpc_status.to_status(answer)
    retry = RetryInfo()
    if any(detail.Unpack(retry) for detail in answer.details):
        pushback = str(retry.retry_delay.ToMilliseconds())
    elif answer.code == code_pb2.RESOURCE_EXHAUSTED:
        pushback = "-1"
    else:
        return status  # type: ignore[no-any-return]
    trailers = *status.trailing_metadata, ("grpc-retry-pushback-ms", pushback)
    return status._replace(trailing_metadata=trailers)  # type: ignore[no-any-return]
