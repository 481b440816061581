"""What happens around every call of ours; `interceptors` says in which order, and why.

Each wraps a method once and keeps the wrapped handler, for grpcio asks at every call. What is not
a unary method of our service passes through untouched: unknown methods stay UNIMPLEMENTED, and
the health service's streams stay alive.
"""

from __future__ import annotations

import re
import time
import uuid
from abc import abstractmethod
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, status_pb2
from grpc_status import rpc_status

from server.errors import InvalidRequestError, internal_status, status_of, violation
from storage.database import Cancellation, Database
from storage.errors import StatementCancelledError

log = structlog.get_logger()

OURS = "/taskservice.v1."
Behavior = Callable[[Any, grpc.ServicerContext], Any]

request_id: ContextVar[str] = ContextVar("request_id", default="")

_DEADLINE_SKEW_SECONDS = 0.1
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


def interceptors(database: Database) -> list[grpc.ServerInterceptor[Any, Any]]:
    """The interceptors, the outermost first."""
    return [
        CallLogInterceptor(),  # Outermost, so that it sees the code a caller sees.
        ErrorInterceptor(),  # Whatever is raised below becomes a status here.
        CancellationInterceptor(database),  # Innermost: it covers the statements and no more.
    ]


class UnaryInterceptor(grpc.ServerInterceptor):  # type: ignore[type-arg]
    """Wraps the unary methods of our service; a subclass says how."""

    def __init__(self) -> None:
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        method = handler_call_details.method
        if method in self._wrapped:
            return self._wrapped[method]
        handler = continuation(handler_call_details)
        if handler is None or handler.unary_unary is None or not method.startswith(OURS):
            return handler
        self._wrapped[method] = grpc.unary_unary_rpc_method_handler(
            self.wrap(method, handler.unary_unary),
            request_deserializer=self.deserializer(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )
        return self._wrapped[method]

    @abstractmethod
    def wrap(self, method: str, behavior: Behavior) -> Behavior:
        """What is called instead of the method's behaviour."""

    def deserializer(self, deserialize: Any) -> Any:
        return deserialize


class CallLogInterceptor(UnaryInterceptor):
    """Writes one line for each call: the method, the code, how long, for whom."""

    def wrap(self, method: str, behavior: Behavior) -> Behavior:
        def logged(request: Any, context: grpc.ServicerContext) -> Any:
            request_id.set(_request_id(context))
            began = time.perf_counter()
            try:
                return behavior(request, context)
            finally:
                log.info(
                    "call",
                    method=method,
                    code=_code_name(context),
                    duration_ms=round((time.perf_counter() - began) * 1000, 3),
                    peer=context.peer(),
                    request_id=request_id.get(),
                )

        return logged


class ErrorInterceptor(UnaryInterceptor):
    """Turns what a call raises into a status with details; what is unknown into INTERNAL."""

    def wrap(self, method: str, behavior: Behavior) -> Behavior:
        def mapped(request: Any, context: grpc.ServicerContext) -> Any:
            try:
                if request is _MALFORMED:
                    raise InvalidRequestError([_UNREADABLE])
                return behavior(request, context)
            except Exception as error:
                context.abort_with_status(rpc_status.to_status(_status(error, context, method)))

        return mapped

    def deserializer(self, deserialize: Any) -> Any:
        """grpcio answers bytes that are no message with INTERNAL; it is the caller's mistake."""

        def lenient(data: bytes) -> Any:
            try:
                return deserialize(data)
            except DecodeError:
                return _MALFORMED

        return lenient


class CancellationInterceptor(UnaryInterceptor):
    """Ends a call's statement in the database when the call ends before it: by its deadline, by
    the caller, or because the connection broke."""

    def __init__(self, database: Database) -> None:
        super().__init__()
        self._database = database

    def wrap(self, method: str, behavior: Behavior) -> Behavior:
        def cancellable(request: Any, context: grpc.ServicerContext) -> Any:
            with Cancellation() as cancellation:
                if not context.add_callback(lambda: self._database.cancel_later(cancellation)):
                    raise StatementCancelledError
                return behavior(request, context)

        return cancellable


_MALFORMED = object()
_UNREADABLE = violation("", "the request is not a message of this method", "MALFORMED")


def _request_id(context: grpc.ServicerContext) -> str:
    """The caller's x-request-id, or one of ours."""
    for key, value in context.invocation_metadata():
        if key == "x-request-id" and _REQUEST_ID.fullmatch(str(value)):
            return str(value)
    return uuid.uuid4().hex


def _status(error: Exception, context: grpc.ServicerContext, method: str) -> status_pb2.Status:
    known = status_of(error)
    if known is None:
        log.error("internal error", method=method, request_id=request_id.get(), exc_info=error)
        return internal_status(request_id.get())
    if isinstance(error, StatementCancelledError) and _is_out_of_time(context):
        known.code = code_pb2.DEADLINE_EXCEEDED
    return known


def _is_out_of_time(context: grpc.ServicerContext) -> bool:
    """The caller's clock began before ours: it hangs up at its deadline a little before ours."""
    remaining = context.time_remaining()
    return remaining is not None and remaining < _DEADLINE_SKEW_SECONDS


def _code_name(context: grpc.ServicerContext) -> str:
    code = context.code()  # type: ignore[attr-defined]
    return "OK" if code is None else str(code.name)
