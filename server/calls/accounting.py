"""Account for each call: one log line, the metrics of gRFC A66, and the status of an error."""

import random
import re
import time
from typing import Any, cast

import grpc
import structlog
from google.rpc import code_pb2, status_pb2
from google.rpc.error_details_pb2 import RetryInfo
from grpc_status import rpc_status
from opentelemetry.trace import get_current_span

from server.calls.current import Call
from server.calls.statuses import REFUSALS, internal_status, reason_of, status_of
from server.calls.unread import UnreadAnswers
from server.errors import RequestTooLargeError
from server.telemetry import logs, metrics
from server.telemetry.tracing import set_span_error, stack_of
from storage.errors import StatementCancelledError

log = structlog.get_logger()

# A call that takes longer is logged as a warning.
SLOW_CALL_SECONDS = 1.0

# The gateway sets it, and removes it from what clients send.
REST_HEADER = "x-taskservice-rest"

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_UNKNOWN_METHOD_CHARACTERS = 100
# A client starts its deadline before the server does, and so cancels shortly before it here.
_DEADLINE_SKEW_SECONDS = 0.1

_CODE_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}

# The codes that make a server's span an error (OpenTelemetry's conventions for gRPC).
_SERVER_ERRORS = {
    code_pb2.UNKNOWN,
    code_pb2.DEADLINE_EXCEEDED,
    code_pb2.UNIMPLEMENTED,
    code_pb2.INTERNAL,
    code_pb2.UNAVAILABLE,
    code_pb2.DATA_LOSS,
}


class Accounting:
    """Write a line for each call, count it, and limit the answers that are not read."""

    def __init__(self) -> None:
        self._refusals = {reason: logs.LogThrottle() for reason in REFUSALS}
        self._unknown = logs.LogThrottle()
        self._unread = UnreadAnswers()

    def begin(self, call: Call, request: object, context: grpc.ServicerContext) -> None:
        call.began = time.perf_counter()
        _read_metadata(call, context)
        call.peer = call.peer or context.peer()
        if isinstance(request, bytes):
            call.received_bytes = len(request)
        elif isinstance(request, RequestTooLargeError):
            call.received_bytes = request.size
        metrics.count_started(call.method)
        if logs.is_verbose():
            log.debug("call began", method=call.method, request_id=call.request_id)

    def end(self, call: Call, context: grpc.ServicerContext) -> None:
        """Count the call and write its line, when its answer is encoded and not yet sent."""
        call.code = call.code or _code_without_error(context)
        call.seconds = time.perf_counter() - call.arrived
        span = get_current_span()
        metrics.count_ended(
            call.method,
            call.code,
            seconds=call.seconds,
            received_bytes=call.received_bytes,
            sent_bytes=call.sent_bytes,
            trace=span.get_span_context(),
        )
        if span.is_recording():
            span.set_attributes(_attributes(call))
        self._write_line(call)
        if not (call.is_stream or call.reason):
            self._unread.add(call, context)

    def end_unknown(self, method: str) -> None:
        """Count a call of a method that does not exist; grpcio does not give its client here."""
        metrics.count_unknown_method()
        if calls := self._unknown.count():
            method = method.removeprefix("/")[:_UNKNOWN_METHOD_CHARACTERS]
            log.info("call", method=method, code="UNIMPLEMENTED", duration_ms=0, calls=calls)

    def _write_line(self, call: Call) -> None:
        fields: dict[str, object] = {
            "method": call.method,
            "code": call.code,
            "duration_ms": _ms(call.seconds),
            "principal": call.principal.name,
            "peer": call.peer,
            "request_id": call.request_id,
        }
        if call.reason:
            fields["reason"] = call.reason
            if refusals := self._refusals.get(call.reason):
                fields["calls"] = refusals.count()
                if not fields["calls"]:
                    return
        is_slow = call.seconds > SLOW_CALL_SECONDS and not call.is_stream
        if is_slow or logs.is_verbose():
            fields["queued_ms"] = _ms(call.queued_seconds)
            fields["db_ms"] = _ms(call.spent.in_database)
            fields["pool_ms"] = _ms(call.spent.waiting)
        logs.write_call("warning" if is_slow else "info", fields)


def note_error(call: Call, error: Exception, context: grpc.ServicerContext) -> grpc.Status:
    """Note an error in the call, the log, the metrics and the span; return the client's status."""
    call.reason = reason_of(error)
    answer = status_of(error) or internal_status(call.request_id)
    if isinstance(error, StatementCancelledError) and _is_out_of_time(context):
        answer.code = code_pb2.DEADLINE_EXCEEDED
    call.code = _CODE_NAMES[answer.code]
    if answer.code == code_pb2.INTERNAL:
        where = {"method": call.method, "request_id": call.request_id}
        log.error("internal error", **where, exception=stack_of(error))
    metrics.count_error(call.method, call.reason)
    get_current_span().set_attributes(
        {"rpc.grpc.status_code": answer.code, "error.type": call.reason}
    )
    if answer.code in _SERVER_ERRORS:
        set_span_error(error)
    return _with_retry(answer)


def _with_retry(answer: status_pb2.Status) -> grpc.Status:
    """Add when gRPC itself retries (gRFC A6): never when a limit without RetryInfo is exceeded."""
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


def _is_out_of_time(context: grpc.ServicerContext) -> bool:
    """Return whether the deadline has passed at the client."""
    remaining = context.time_remaining()
    return remaining is not None and remaining < _DEADLINE_SKEW_SECONDS


def _code_without_error(context: grpc.ServicerContext) -> str:
    if context.is_active():
        return "OK"
    return "DEADLINE_EXCEEDED" if _is_out_of_time(context) else "CANCELLED"


def _attributes(call: Call) -> dict[str, str | float]:
    """Return what OpenTelemetry's interceptor does not know: the principal and the waits."""
    return {
        "rpc.grpc.status_code": grpc.StatusCode[call.code].value[0],
        "enduser.id": call.principal.name,
        "taskservice.request_id": call.request_id,
        "taskservice.queued_seconds": call.queued_seconds,
        "taskservice.pool_seconds": call.spent.waiting,
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _read_metadata(call: Call, context: grpc.ServicerContext) -> None:
    """Take the client's x-request-id, or make one; note whether the REST gateway calls."""
    for key, value in context.invocation_metadata():
        if key == "x-request-id" and _REQUEST_ID.fullmatch(str(value)):
            call.request_id = str(value)
        elif key == REST_HEADER:
            call.is_rest = True
    call.request_id = call.request_id or f"{random.getrandbits(128):032x}"
