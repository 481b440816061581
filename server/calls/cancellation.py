"""Nothing runs in the database for a call that has ended."""

from __future__ import annotations

from typing import Any

import grpc

from server.calls.interceptor import CallInterceptor
from storage.cancellation import Cancellation
from storage.database import Database
from storage.errors import StatementCancelledError


class CancellationInterceptor(CallInterceptor):
    """Ends a call's statement in the database when the call ends before it: by its deadline, by
    the caller, or because the connection broke."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def around(self, method: str, request: Any, context: grpc.ServicerContext) -> Cancellation:
        cancellation = Cancellation(context.time_remaining())
        if not context.add_callback(lambda: self._database.cancel_later(cancellation)):
            raise StatementCancelledError
        return cancellation
