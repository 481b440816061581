"""Turn what a call raises into a status with details; what is unknown into INTERNAL."""

from typing import Any, cast

import grpc
import structlog
from google.rpc import code_pb2, status_pb2
from google.rpc.error_details_pb2 import RetryInfo
from grpc_status import rpc_status
from opentelemetry.trace import get_current_span

from server.calls.accounting import is_out_of_time
from server.calls.current import Call
from server.calls.statuses import internal_status, reason_of, status_of
from server.telemetry import metrics
from server.telemetry.tracing import set_span_error, stack_of
from storage.errors import StatementCancelledError

log = structlog.get_logger()

_CODE_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}

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


def note(call: Call, error: Exception, context: grpc.ServicerContext) -> grpc.Status:
    """Note an error in the call, the log, the metrics and the span; return the client's status."""
    call.reason = reason_of(error)
    answer = status_of(error) or internal_status(call.request_id)
    if isinstance(error, StatementCancelledError) and is_out_of_time(context):
        answer.code = code_pb2.DEADLINE_EXCEEDED
    call.code = _CODE_NAMES[answer.code]
    if answer.code == code_pb2.INTERNAL:
        log.error(
            "internal error",
            method=call.method,
            request_id=call.request_id,
            exception=stack_of(error),
        )
    metrics.count_error(call.method, call.reason)
    get_current_span().set_attributes(
        {"rpc.grpc.status_code": answer.code, "error.type": call.reason}
    )
    if answer.code in _SERVER_ERRORS:
        set_span_error(error)
    return _with_retry(answer)


def _with_retry(answer: status_pb2.Status) -> grpc.Status:
    """Convert a status; for gRPC's own retries, add when to retry (gRFC A6).

    A client retries after RetryInfo's delay, and not at all when a limit without one is exceeded.
    """
    status: Any = rpc_status.to_status(answer)
    retry = RetryInfo()
    if any(detail.Unpack(retry) for detail in answer.details):
        pushback = str(retry.retry_delay.ToMilliseconds())
    elif answer.code == code_pb2.RESOURCE_EXHAUSTED:
        pushback = "-1"
    else:
        return cast(grpc.Status, status)
    trailers = *status.trailing_metadata, ("grpc-retry-pushback-ms", pushback)
    return cast(grpc.Status, status._replace(trailing_metadata=trailers))
