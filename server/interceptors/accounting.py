"""Accounts for every call: one log line, and the metrics of gRFC A66."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import structlog
from google.protobuf.message import Message

from server import logs, metrics
from server.call import Call, arrived, current_call
from server.interceptors.base import OURS, CallInterceptor, Handler
from server.telemetry import add_span_attributes

log = structlog.get_logger()

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_UNKNOWN_METHOD_CHARACTERS = 100


class AccountingInterceptor(CallInterceptor):
    """Writes a line for each call: the method, the code, how long, for whom; and counts it."""

    def __init__(self, streams: ThreadPoolExecutor, slow_call_seconds: float) -> None:
        super().__init__(streams)
        self._slow_call_seconds = slow_call_seconds

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """A call has arrived. For a method that there is not, this is all that happens here."""
        call = arrived(handler_call_details.method)
        handler = super().intercept_service(continuation, handler_call_details)
        if handler is None:
            metrics.count_unknown_method()
            method = call.method[:_UNKNOWN_METHOD_CHARACTERS]
            log.info("call", method=method, code="UNIMPLEMENTED", duration_ms=0)
        elif handler_call_details.method.startswith(OURS):
            call.is_stream = handler.response_streaming
            metrics.count_started(call)
        return handler

    @contextmanager
    def around(self, method: str, request: Any, context: grpc.ServicerContext) -> Iterator[None]:
        call = current_call()
        call.begin(_request_id(context))
        call.received_bytes = _size(request)
        if logs.is_verbose():
            log.debug("call began", method=call.method, request_id=call.request_id)
        add_span_attributes(
            {
                "enduser.id": call.principal.name,
                "taskservice.request_id": call.request_id,
                "taskservice.queued_seconds": call.queued_seconds,
            }
        )
        try:
            yield
        finally:
            call.end(_code_name(context))
            metrics.count_ended(call)
            self._write_line(call, context.peer())

    def serializer(self, method: str, serialize: Any) -> Any:
        """A call's only answer is written when it is over; what a stream sends, before its end."""

        def counting(message: Any) -> bytes:
            data: bytes = serialize(message)
            call = current_call()
            call.sent_bytes += len(data)
            if not call.is_stream:
                metrics.count_sent(call)
            return data

        return counting

    def _write_line(self, call: Call, peer: str) -> None:
        fields: dict[str, object] = {"reason": call.reason} if call.reason else {}
        write = log.info
        is_slow = call.seconds > self._slow_call_seconds and not call.is_stream
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


def _size(request: Any) -> int:
    """The bytes of a request; grpcio reads it on a thread that does not know the call."""
    return request.ByteSize() if isinstance(request, Message) else getattr(request, "size", 0)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _request_id(context: grpc.ServicerContext) -> str:
    """The caller's x-request-id, or one of ours."""
    for key, value in context.invocation_metadata():
        if key == "x-request-id" and _REQUEST_ID.fullmatch(str(value)):
            return str(value)
    return uuid.uuid4().hex


def _code_name(context: grpc.ServicerContext) -> str:
    code = context.code()  # type: ignore[attr-defined]
    if code is None:
        return "OK" if context.is_active() else "CANCELLED"
    return str(code.name)
