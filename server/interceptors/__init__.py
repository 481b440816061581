"""What happens around every call of ours, and in which order."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from opentelemetry.sdk.trace.sampling import Sampler

from server.interceptors.accounting import AccountingInterceptor
from server.interceptors.cancellation import CancellationInterceptor
from server.interceptors.errors import ErrorInterceptor
from server.interceptors.tracing import TracingInterceptor
from server.settings import Settings
from storage.database import Database


def interceptors(
    settings: Settings, database: Database, streams: ThreadPoolExecutor, sampler: Sampler
) -> list[grpc.ServerInterceptor[Any, Any]]:
    """The interceptors, the outermost first. `streams` has the threads that streams run on."""
    return [
        # Outermost: log lines, metrics and statements happen within the span.
        TracingInterceptor(streams, sampler),
        # Outside of errors, so that it sees the code a caller sees.
        AccountingInterceptor(streams, settings.slow_call_seconds),
        ErrorInterceptor(streams),  # Whatever is raised below becomes a status here.
        # Innermost: it covers the statements and no more.
        CancellationInterceptor(streams, database),
    ]
