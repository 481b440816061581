"""Serve a collector of traces that discards what it receives."""

from __future__ import annotations

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from benchmarks.services.plain import serve


def main() -> None:
    answer = ExportTraceServiceResponse().SerializeToString()
    serve("opentelemetry.proto.collector.trace.v1.TraceService", {"Export": lambda _: answer})


if __name__ == "__main__":
    main()
