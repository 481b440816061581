"""OpenTelemetry: spans of the client, continued by the service."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from servers import failing

ID = "01a21b10-defa-776c-b031-167c29da6c00"

# An SDK is configured once in a process.
SDK = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
"""
PROGRAM = """
import contextlib, json, sys
{sdk}
from taskservice_client import TaskClient
def fail():
    raise ConnectionError("the issuer is away")
token = fail if {fails} else None
with TaskClient(sys.argv[1], token=token) as client, contextlib.suppress(ConnectionError):
    client.get(sys.argv[2])
spans = exporter.get_finished_spans() if {traced} else ()
print(json.dumps([
    [span.name, format(span.context.trace_id, "032x"), span.status.status_code.name]
    for span in spans
]))
"""


def run(address: str, *, traced: bool, fails: bool = False) -> list[list[str]]:
    """Run a program that calls once, with an SDK or without; return its spans.

    `fails`: its token cannot be obtained.
    """
    program = PROGRAM.format(sdk=SDK if traced else "", traced=traced, fails=fails)
    done = subprocess.run(
        [sys.executable, "-c", program, address, ID], stdout=subprocess.PIPE, timeout=60, check=True
    )
    spans: list[list[str]] = json.loads(done.stdout)
    return spans


def test_a_call_is_a_span_that_the_service_continues() -> None:
    with failing() as (address, server):
        ((name, trace_id, status),) = run(address, traced=True)
    assert (name, status) == ("taskservice.v1.TaskService/GetTask", "UNSET")
    assert trace_id in str(server.received[0].metadata["traceparent"])


def test_a_call_without_a_token_is_a_failed_span() -> None:
    ((_, _, status),) = run("127.0.0.1:1", traced=True, fails=True)
    assert status == "ERROR"


@pytest.mark.parametrize("header", ["traceparent", "tracestate", "baggage"])
def test_an_application_without_an_sdk_sends_no_context(header: str) -> None:
    with failing() as (address, server):
        assert run(address, traced=False) == []
    assert header not in server.received[0].metadata
