"""Nothing runs in the database for a call that has ended."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc

from server.interceptors.base import CallInterceptor
from storage.database import Cancellation, Database
from storage.errors import StatementCancelledError


class CancellationInterceptor(CallInterceptor):
    """Ends a call's statement in the database when the call ends before it: by its deadline, by
    the caller, or because the connection broke."""

    def __init__(self, streams: ThreadPoolExecutor, database: Database) -> None:
        super().__init__(streams)
        self._database = database

    @contextmanager
    def around(self, method: str, request: Any, context: grpc.ServicerContext) -> Iterator[None]:
        with Cancellation() as cancellation:
            if not context.add_callback(lambda: self._database.cancel_later(cancellation)):
                raise StatementCancelledError
            yield
