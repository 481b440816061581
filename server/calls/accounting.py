"""Accounts for every call: one log line, and the metrics of gRFC A66."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import structlog
from opentelemetry.trace import get_current_span

from server.calls.current import Call, current_call
from server.calls.interceptor import CallInterceptor, code_name
from server.calls.statuses import REFUSALS
from server.calls.unread import UnreadAnswers
from server.telemetry import logs, metrics

log = structlog.get_logger()

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_UNKNOWN_METHOD_CHARACTERS = 100
# A call that takes longer is logged as a warning.
SLOW_CALL_SECONDS = 1.0


class AccountingInterceptor(CallInterceptor):
    """Writes a line for each call: the method, the code, how long, for whom; and counts it."""

    def __init__(self) -> None:
        self._unread = UnreadAnswers()
        self._refusals = {reason: logs.LogThrottle() for reason in REFUSALS}

    @contextmanager
    def around(self, method: str, request: Any, context: grpc.ServicerContext) -> Iterator[None]:
        call, span = current_call(), get_current_span()
        call.begin(_request_id(context))
        call.received_bytes = _size(request)
        metrics.count_started(call.method)
        if logs.is_verbose():
            log.debug("call began", method=call.method, request_id=call.request_id)
        is_answered = False
        try:
            yield
            is_answered = not call.is_stream  # Its answer is written next, and counted then.
            call.context = context if is_answered else None
        finally:
            call.end(code_name(context))
            metrics.count_ended(
                call.method,
                call.code,
                seconds=call.seconds,
                received_bytes=call.received_bytes,
                trace=span.get_span_context(),
            )
            if not is_answered:
                metrics.count_sent(call.method, call.code, call.sent_bytes)
            if span.is_recording():
                span.set_attributes(_attributes(call))
            self._write_line(call, context.peer())

    def serializer(self, method: str, serialize: Any) -> Any:
        """A call's only answer is written when it is over; what a stream sends, before its end."""

        def counting(message: Any) -> bytes:
            data: bytes = serialize(message)
            call = current_call()
            call.sent_bytes += len(data)
            if not call.is_stream:
                metrics.count_sent(call.method, call.code, call.sent_bytes)
                self._count_unread(call, len(data))
            return data

        return counting

    def _count_unread(self, call: Call, size: int) -> None:
        context, call.context = call.context, None  # It holds the call: a cycle would outlive both.
        if context:
            self._unread.add(call, context, size)

    def _write_line(self, call: Call, peer: str) -> None:
        fields: dict[str, object] = {"reason": call.reason} if call.reason else {}
        if refusals := self._refusals.get(call.reason):
            fields["calls"] = refusals.count()
            if not fields["calls"]:
                return
        write = log.info
        is_slow = call.seconds > SLOW_CALL_SECONDS and not call.is_stream
        if is_slow or logs.is_verbose():
            write = log.warning if is_slow else log.info
            fields |= {
                "queued_ms": _ms(call.queued_seconds),
                "db_ms": _ms(call.spent.in_database),
                "pool_ms": _ms(call.spent.waiting),
            }
        write(
            "call",
            method=call.method,
            code=call.code,
            duration_ms=_ms(call.seconds),
            principal=call.principal.name,
            peer=peer,
            request_id=call.request_id,
            **fields,
        )


def account_for_unknown(method: str) -> None:
    """A line, and a place in the metrics, for a call of a method that there is not.

    grpcio does not tell here whose call it is.
    """
    metrics.count_unknown_method()
    if calls := _unknown.count():
        method = method.removeprefix("/")[:_UNKNOWN_METHOD_CHARACTERS]
        log.info("call", method=method, code="UNIMPLEMENTED", duration_ms=0, calls=calls)


_unknown = logs.LogThrottle()


def _size(request: Any) -> int:
    """Return the size of a request, in bytes; it is not decoded yet."""
    return len(request) if isinstance(request, bytes) else getattr(request, "size", 0)


def _attributes(call: Call) -> dict[str, str | float]:
    """What the library does not say of a call: for whom it was, and what it waited for."""
    return {
        "rpc.grpc.status_code": grpc.StatusCode[call.code].value[0],
        "enduser.id": call.principal.name,
        "taskservice.request_id": call.request_id,
        "taskservice.queued_seconds": call.queued_seconds,
        "taskservice.pool_seconds": call.spent.waiting,
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _request_id(context: grpc.ServicerContext) -> str:
    """The caller's x-request-id, or one of ours."""
    for key, value in context.invocation_metadata():
        if key == "x-request-id" and _REQUEST_ID.fullmatch(str(value)):
            return str(value)
    return uuid.uuid4().hex
