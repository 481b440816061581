"""Spans are exported over TLS, with headers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import grpc
import trustme

from taskservice.v1.task_service_pb2 import GetTaskStatsRequest
from tests.support.collector import running_collector
from tests.support.service import ServiceProcess
from tests.support.traces import new_trace


def test_a_collector_is_reached_by_tls_and_with_headers(
    start_service: Callable[..., ServiceProcess], own_database_url: str, tmp_path: Path
) -> None:
    """By OpenTelemetry's standard variables, as every other service of its operator."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    shown = authority.issue_cert("localhost")
    chain = b"".join(pem.bytes() for pem in shown.cert_chain_pems)
    credentials = grpc.ssl_server_credentials([(shown.private_key_pem.bytes(), chain)])
    with running_collector(credentials) as collector:
        service = start_service(
            ENVIRONMENT="staging",
            DATABASE_URL=own_database_url,
            OTEL_EXPORTER_ENDPOINT=f"https://localhost:{collector.port}",
            OTEL_EXPORTER_OTLP_CERTIFICATE=str(tmp_path / "ca.pem"),
            OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer%20of-the-collector",
            OTEL_BSP_SCHEDULE_DELAY="50",
        )
        trace = new_trace()
        service.stub().GetTaskStats(GetTaskStatsRequest(), metadata=trace.metadata())
        collector.await_server_span(trace.id)
        assert collector.metadata["authorization"] == "Bearer of-the-collector"
        assert service.stop() == 0
        assert "of-the-collector" not in service.log
