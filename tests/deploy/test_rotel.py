"""Telemetry of the running service passes a real collector, Rotel, as rotel.env configures it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from dotenv import dotenv_values
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from opentelemetry.proto.metrics.v1 import metrics_pb2

from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import CreateTaskRequest
from tests.support.collector import Collector, running_collector
from tests.support.ports import held_port
from tests.support.prometheus import OBSERVABILITY
from tests.support.scrape import scrape
from tests.support.service import PATIENCE_SECONDS, ServiceProcess, running_service, wait_until
from tests.support.traces import new_trace

pytestmark = pytest.mark.deploy

_TOOLS = Path(__file__).parents[2] / ".tools" / "bin"


@pytest.fixture
def collector() -> Iterator[Collector]:
    """What Rotel exports to."""
    with running_collector() as collector:
        yield collector


@pytest.fixture
def rotel(tmp_path: Path, collector: Collector) -> Iterator[str]:
    """The address of a Rotel that passes everything on to `collector`."""
    libraries = "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"
    command = [str(_TOOLS / "python"), "-c", libraries]
    folder = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    shipped = dotenv_values(OBSERVABILITY / "rotel.env")
    settings = {name: value or "" for name, value in shipped.items()} | {
        "ROTEL_OTLP_HTTP_ENDPOINT": "127.0.0.1:0",
        "ROTEL_OTLP_EXPORTER_ENDPOINT": collector.endpoint,
        # It links the libpython that its Python has, which may be where no linker looks.
        "LD_LIBRARY_PATH": folder,
    }
    with ExitStack() as stack:
        address = f"127.0.0.1:{stack.enter_context(held_port())}"
        settings["ROTEL_OTLP_GRPC_ENDPOINT"] = address
        log = stack.enter_context((tmp_path / "rotel.log").open("w"))
        started = subprocess.Popen(
            [_TOOLS / "rotel", "start"], env=settings, cwd=tmp_path, stdout=log, stderr=log
        )
        stack.callback(started.wait)
        stack.callback(started.kill)
        channel = stack.enter_context(grpc.insecure_channel(address))
        grpc.channel_ready_future(channel).result(PATIENCE_SECONDS)
        yield address


@pytest.fixture
def service(tmp_path: Path, own_database_url: str, rotel: str) -> Iterator[ServiceProcess]:
    settings = {
        "DATABASE_URL": own_database_url,
        "ENVIRONMENT": "staging",
        "METRICS_PORT": "0",
        "OTEL_EXPORTER_ENDPOINT": f"http://{rotel}",
        "OTEL_SERVICE_NAME": "tasks",
        "WORKERS": "1",
    }
    with running_service(tmp_path / "service", **settings) as service:
        yield service


def test_a_span_of_a_call_arrives(service: ServiceProcess, collector: Collector) -> None:
    trace = new_trace()
    create = CreateTaskRequest(task=Task(title="a task"))
    service.stub().CreateTask(create, metadata=trace.metadata())
    span = collector.await_server_span(trace.id)
    assert span.name == "taskservice.v1.TaskService/CreateTask"
    assert span.resource["service.name"] == "tasks"


def test_a_metric_arrives(service: ServiceProcess, collector: Collector, rotel: str) -> None:
    """What METRICS_PORT says, sent by OTLP as a scraping collector does: Rotel does not scrape."""
    service.stub()
    (ready,) = scrape(service).samples("taskservice_ready")
    point = metrics_pb2.NumberDataPoint(as_double=ready.value, time_unix_nano=time.time_ns())
    metric = metrics_pb2.Metric(name=ready.name, gauge=metrics_pb2.Gauge(data_points=[point]))
    scope = metrics_pb2.ScopeMetrics(metrics=[metric])
    request = metrics_service_pb2.ExportMetricsServiceRequest(
        resource_metrics=[metrics_pb2.ResourceMetrics(scope_metrics=[scope])]
    )
    with grpc.insecure_channel(rotel) as channel:
        export = channel.unary_unary(
            "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
            metrics_service_pb2.ExportMetricsServiceRequest.SerializeToString,
            metrics_service_pb2.ExportMetricsServiceResponse.FromString,
        )
        export(request, timeout=PATIENCE_SECONDS)
    wait_until(lambda: "taskservice_ready" in collector.metrics, "the metric arrives")
    assert collector.metrics == {"taskservice_ready": ready.value}
