"""The trace of a call, from the span that a client calls in to the statements in the database."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from server.settings import Settings
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    CreateTaskRequest,
    GetTaskRequest,
    ListTaskEventsRequest,
    UpdateTaskRequest,
    WatchTasksRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.collector import CLIENT, SERVER, Collector, ReceivedSpan, running_collector
from tests.support.errors import fails
from tests.support.postgres import await_waiting, closed, execute, locked_task
from tests.support.scrape import scrape
from tests.support.service import SERVING, ServiceProcess, health_stub, running_service, wait_until
from tests.support.traces import new_trace

SERVICE = "taskservice.v1.TaskService"
NO_TASK = GetTaskRequest(id="0190a8d0-1e2b-7c3d-8e4f-5a6b7c8d9e0f")


def call_line(service: ServiceProcess, **fields: str) -> dict[str, Any]:
    """The log line of the one call with these fields, once it is written."""

    def lines() -> list[dict[str, Any]]:
        return [line for line in service.events("call") if fields.items() <= line.items()]

    (line,) = wait_until(lines, f"the line of the call with {fields}")
    return line


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with running_collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def start(
    tmp_path_factory: pytest.TempPathFactory, shared_database_url: str, collector: Collector
) -> Callable[..., Any]:
    def start(constants: Mapping[str, object] = MappingProxyType({}), **settings: str) -> Any:
        defaults = {
            "ENVIRONMENT": "staging",
            "DATABASE_URL": shared_database_url,
            "WORKERS": "1",
            "OTEL_EXPORTER_ENDPOINT": collector.endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": "50",
        }
        return running_service(
            tmp_path_factory.mktemp("service"), (), constants, **defaults | settings
        )

    return start


@pytest.fixture(scope="module")
def service(start: Callable[..., Any]) -> Iterator[ServiceProcess]:
    """A service that traces what its callers trace, and nothing of its own accord."""
    with start(METRICS_PORT="0", OTEL_TRACES_SAMPLER_ARG="0") as service:
        yield service


@pytest.fixture(scope="module")
def channel(service: ServiceProcess) -> grpc.Channel:
    return service.channel()


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> TaskServiceStub:
    return TaskServiceStub(channel)


@pytest.fixture
def task(stub: TaskServiceStub) -> Task:
    return stub.CreateTask(CreateTaskRequest(task=Task(title="old")))


def exceptions(span: ReceivedSpan) -> list[dict[str, Any]]:
    return [attributes for name, attributes in span.events if name == "exception"]


def code_of(span: ReceivedSpan) -> int:
    return int(span.attributes["rpc.grpc.status_code"])


# --- One call -------------------------------------------------------------------------------------


def test_a_trace_leads_from_the_client_to_statements_log_and_metrics(
    service: ServiceProcess, stub: TaskServiceStub, task: Task, collector: Collector
) -> None:
    """Each of trace, metric and log line leads to the others."""
    trace = new_trace()
    update = UpdateTaskRequest(task=Task(id=task.id, title="new", etag='"99"'))
    with pytest.raises(grpc.RpcError):
        stub.UpdateTask(update, metadata=trace.metadata())
    call = collector.await_server_span(trace.id)
    statements = [span for span in collector.trace(trace.id) if span is not call]
    line = call_line(service, trace_id=trace.id)
    buckets = scrape(service).samples(
        "grpc_server_call_duration_seconds_bucket",
        grpc_method=f"{SERVICE}/UpdateTask",
        grpc_status="ABORTED",
    )
    assert call.parent_id == trace.span_id
    assert {span.parent_id for span in statements} == {call.span_id}
    names = [span.attributes["db.operation.name"] for span in statements]
    assert sorted(names) == ["get many", "update"]
    assert (code_of(call), call.is_error) == (grpc.StatusCode.ABORTED.value[0], False)
    assert call.attributes["error.type"] == line["reason"] == "ETAG_MISMATCH"
    assert line["span_id"] == call.span_id
    assert line["request_id"] == call.attributes["taskservice.request_id"]
    assert {"trace_id": trace.id, "span_id": call.span_id} in [
        bucket.exemplar.labels for bucket in buckets if bucket.exemplar
    ]


def test_a_call_is_one_trace_from_its_client_to_its_statements(
    stub: TaskServiceStub, task: Task, collector: Collector
) -> None:
    trace = new_trace()
    stub.UpdateTask(
        UpdateTaskRequest(task=Task(id=task.id, title="new")), metadata=trace.metadata()
    )
    call = collector.await_server_span(trace.id)
    statements = [span for span in collector.trace(trace.id) if span is not call]
    assert call.parent_id == trace.span_id
    assert [span.parent_id for span in statements] == [call.span_id]
    assert [span.span.kind for span in statements] == [CLIENT]


def test_the_span_of_a_call_says_which_and_whose(
    stub: TaskServiceStub, task: Task, collector: Collector
) -> None:
    trace = new_trace()
    stub.GetTask(
        GetTaskRequest(id=task.id), metadata=(*trace.metadata(), ("x-request-id", "my-request"))
    )
    call = collector.await_server_span(trace.id)
    assert call.name == f"{SERVICE}/GetTask"
    expected = {
        "rpc.system": "grpc",
        "rpc.service": SERVICE,
        "rpc.method": "GetTask",
        "rpc.grpc.status_code": 0,
        "enduser.id": "anonymous",
        "taskservice.request_id": "my-request",
    }
    assert expected.items() <= call.attributes.items()
    assert call.attributes["taskservice.queued_seconds"] > 0
    assert not call.is_error


def test_a_statement_is_named_for_what_it_is_for(
    stub: TaskServiceStub, task: Task, collector: Collector
) -> None:
    trace = new_trace()
    stub.UpdateTask(
        UpdateTaskRequest(task=Task(id=task.id, title="new")), metadata=trace.metadata()
    )
    collector.await_server_span(trace.id)
    statements = [span for span in collector.trace(trace.id) if span.span.kind == CLIENT]
    assert [span.name for span in statements] == ["update"]
    assert [span.attributes["db.operation.name"] for span in statements] == ["update"]
    assert "UPDATE tasks SET" in statements[0].attributes["db.query.text"]
    assert statements[0].attributes["db.system.name"] == "postgresql"


def test_spans_hold_no_data_of_the_caller(
    stub: TaskServiceStub, task: Task, collector: Collector
) -> None:
    trace = new_trace()
    stub.UpdateTask(
        UpdateTaskRequest(task=Task(id=task.id, title="a marker of mine")),
        metadata=trace.metadata(),
    )
    collector.await_server_span(trace.id)
    spans = "".join(str(span.span) for span in collector.trace(trace.id))
    assert "UPDATE tasks" in spans
    assert "marker" not in spans
    assert task.id not in spans


def test_the_resource_says_which_process_of_which_service_it_was(
    service: ServiceProcess, stub: TaskServiceStub, task: Task, collector: Collector
) -> None:
    trace = new_trace()
    stub.GetTask(GetTaskRequest(id=task.id), metadata=trace.metadata())
    resource = collector.await_server_span(trace.id).resource
    assert resource["service.name"] == "task-service"
    assert resource["service.version"] == Settings().version
    assert resource["deployment.environment.name"] == "staging"
    assert resource["service.instance.id"].endswith(f":{service.pid}")


def test_the_log_line_of_a_call_leads_to_its_span(
    service: ServiceProcess, stub: TaskServiceStub, task: Task, collector: Collector
) -> None:
    trace = new_trace()
    stub.GetTask(GetTaskRequest(id=task.id), metadata=trace.metadata())
    assert (
        call_line(service, trace_id=trace.id)["span_id"]
        == collector.await_server_span(trace.id).span_id
    )


def test_a_bucket_of_the_duration_leads_to_a_span(
    service: ServiceProcess, stub: TaskServiceStub, task: Task, collector: Collector
) -> None:
    """From a graph of slow calls to one of them."""
    trace = new_trace()
    stub.GetTask(GetTaskRequest(id=task.id), metadata=trace.metadata())
    call = collector.await_server_span(trace.id)
    buckets = scrape(service).samples(
        "grpc_server_call_duration_seconds_bucket", grpc_method=f"{SERVICE}/GetTask"
    )
    assert {"trace_id": call.trace_id, "span_id": call.span_id} in [
        bucket.exemplar.labels for bucket in buckets if bucket.exemplar
    ]


def test_the_span_of_a_watch_says_what_happened_to_it(
    stub: TaskServiceStub, collector: Collector
) -> None:
    trace = new_trace()
    watch: Any = stub.WatchTasks(WatchTasksRequest(), metadata=trace.metadata())
    next(watch)
    watch.cancel()
    call = collector.await_server_span(trace.id)
    assert "joined" in [name for name, _ in call.events]
    assert not call.is_error


def test_health_and_reflection_leave_no_span(
    channel: grpc.Channel, stub: TaskServiceStub, task: Task, collector: Collector
) -> None:
    trace = new_trace()
    check = health_stub(channel).Check
    assert check(health_pb2.HealthCheckRequest(), metadata=trace.metadata()).status == SERVING
    reflect: Any = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
    asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
    assert next(reflect(iter(asked), metadata=trace.metadata())).list_services_response.service
    stub.GetTask(GetTaskRequest(id=task.id), metadata=trace.metadata())
    collector.await_server_span(trace.id)
    names = [span.name for span in collector.trace(trace.id) if span.span.kind == SERVER]
    assert names == [f"{SERVICE}/GetTask"]


# --- Errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "code"),
    [(NO_TASK, grpc.StatusCode.NOT_FOUND), (GetTaskRequest(), grpc.StatusCode.INVALID_ARGUMENT)],
    ids=["not found", "invalid"],
)
def test_a_mistake_of_the_caller_is_no_error_of_the_span(
    stub: TaskServiceStub, collector: Collector, request_: GetTaskRequest, code: grpc.StatusCode
) -> None:
    trace = new_trace()
    with pytest.raises(grpc.RpcError):
        stub.GetTask(request_, metadata=trace.metadata())
    call = collector.await_server_span(trace.id)
    assert code_of(call) == code.value[0]
    assert call.attributes["error.type"] in {"TASK_NOT_FOUND", "INVALID_REQUEST"}
    assert not call.is_error
    assert exceptions(call) == []


@contextmanager
def forbidden_title(url: str, title: str) -> Iterator[None]:
    """The table has a constraint that the service does not know; its errors quote the row."""
    execute(url, f"ALTER TABLE tasks ADD CONSTRAINT surprise CHECK (title <> '{title}') NOT VALID")
    try:
        yield
    finally:
        execute(url, "ALTER TABLE tasks DROP CONSTRAINT surprise")


def test_the_span_of_an_internal_error_has_its_cause_without_client_data(
    stub: TaskServiceStub, collector: Collector, shared_database_url: str
) -> None:
    trace = new_trace()
    request = CreateTaskRequest(task=Task(title="a marker of mine"))
    with (
        forbidden_title(shared_database_url, "a marker of mine"),
        fails(grpc.StatusCode.INTERNAL, "INTERNAL"),
    ):
        stub.CreateTask(request, metadata=trace.metadata())
    call = collector.await_server_span(trace.id)
    assert call.is_error
    (exception,) = exceptions(call)
    assert exception["exception.type"] == "storage.errors.ConstraintError"
    assert "surprise" in exception["exception.message"]
    assert "repository.py" in exception["exception.stacktrace"]
    assert not any("marker" in str(span.span) for span in collector.trace(trace.id))


def test_a_database_that_is_away_is_an_error_of_the_span(
    stub: TaskServiceStub, collector: Collector, shared_database_url: str
) -> None:
    trace = new_trace()
    with (
        closed(shared_database_url),
        fails(grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE"),
    ):
        stub.GetTask(NO_TASK, metadata=trace.metadata())
    call = collector.await_server_span(trace.id)
    assert code_of(call) == grpc.StatusCode.UNAVAILABLE.value[0]
    assert call.attributes["error.type"] == "DATABASE_UNAVAILABLE"
    assert call.is_error


def test_a_call_out_of_time_is_an_error_of_the_span(
    stub: TaskServiceStub, task: Task, collector: Collector, shared_database_url: str
) -> None:
    trace = new_trace()
    update = UpdateTaskRequest(task=Task(id=task.id, title="new"))
    with locked_task(shared_database_url, task.id):
        with pytest.raises(grpc.RpcError):
            stub.UpdateTask(update, timeout=0.5, metadata=trace.metadata())
        call = collector.await_server_span(trace.id)
    assert code_of(call) == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
    assert call.is_error


def test_a_call_that_its_caller_cancels_is_no_error_of_the_span(
    stub: TaskServiceStub, task: Task, collector: Collector, shared_database_url: str
) -> None:
    trace = new_trace()
    update = UpdateTaskRequest(task=Task(id=task.id, title="new"))
    with locked_task(shared_database_url, task.id):
        call: Any = stub.UpdateTask.future(update, metadata=trace.metadata())
        await_waiting(shared_database_url)
        call.cancel()
        span = collector.await_server_span(trace.id)
    assert code_of(span) == grpc.StatusCode.CANCELLED.value[0]
    assert not span.is_error


# --- Sampling -------------------------------------------------------------------------------------


def await_later_span(stub: TaskServiceStub, collector: Collector) -> None:
    """Whatever is to be exported of earlier calls has been, once this returns."""
    later = new_trace()
    with pytest.raises(grpc.RpcError):
        stub.GetTask(NO_TASK, metadata=later.metadata())
    collector.await_server_span(later.id)


def test_what_the_caller_does_not_trace_is_not_exported(
    service: ServiceProcess, stub: TaskServiceStub, collector: Collector
) -> None:
    trace = new_trace()
    stub.CreateTask(CreateTaskRequest(task=Task(title="new")), metadata=trace.metadata("00"))
    await_later_span(stub, collector)
    assert collector.trace(trace.id) == []


def test_a_call_that_is_not_sampled_has_its_trace_in_log_and_history(
    service: ServiceProcess, stub: TaskServiceStub
) -> None:
    trace = new_trace()
    task = stub.CreateTask(CreateTaskRequest(task=Task(title="new")), metadata=trace.metadata("00"))
    (event,) = stub.ListTaskEvents(ListTaskEventsRequest(task_id=task.id)).events
    assert event.trace_id == trace.id
    assert call_line(service, trace_id=trace.id)["span_id"] != trace.span_id


def test_a_watch_that_is_not_traced_has_its_trace_in_the_log(
    service: ServiceProcess, stub: TaskServiceStub
) -> None:
    """It runs on other threads than calls."""
    trace = new_trace()
    watch: Any = stub.WatchTasks(WatchTasksRequest(), metadata=trace.metadata("00"))
    next(watch)
    watch.cancel()
    assert call_line(service, trace_id=trace.id)["method"] == f"{SERVICE}/WatchTasks"


def test_the_trace_of_a_call_is_not_that_of_the_next_on_its_thread(
    service: ServiceProcess, stub: TaskServiceStub
) -> None:
    strangers = set()
    for n in range(40):
        trace = new_trace()
        strangers.add(trace.id)
        for metadata in (trace.metadata("00"), (("x-request-id", f"own-trace-{n}"),)):
            with pytest.raises(grpc.RpcError):
                stub.GetTask(NO_TASK, metadata=metadata)
    own = {call_line(service, request_id=f"own-trace-{n}")["trace_id"] for n in range(40)}
    assert len(own) == 40
    assert own.isdisjoint(strangers)


def test_at_a_ratio_of_0_calls_without_a_trace_are_not_exported(
    service: ServiceProcess, stub: TaskServiceStub, collector: Collector
) -> None:
    with pytest.raises(grpc.RpcError):
        stub.GetTask(NO_TASK, metadata=(("x-request-id", "not-traced"),))
    await_later_span(stub, collector)
    trace_id = call_line(service, request_id="not-traced")["trace_id"]
    assert collector.trace(trace_id) == []


@pytest.mark.parametrize(
    "metadata",
    [
        [("traceparent", "a-marker-of-mine")],
        [("traceparent", f"ff-{'1' * 32}-{'1' * 16}-01"), ("tracestate", "a-marker-of-mine=1")],
        [("baggage", "a-marker-of-mine"), ("baggage", "=;,a-marker-of-mine=%")],
        [("traceparent", f"00-{'2' * 32}-{'2' * 16}-01"), ("tracestate", "a-marker-of-mine")],
    ],
    ids=["no traceparent", "an unknown version", "baggage", "no tracestate"],
)
def test_what_is_no_trace_context_does_no_harm(
    service: ServiceProcess, stub: TaskServiceStub, task: Task, metadata: Any
) -> None:
    request_id = secrets.token_hex(8)
    stub.GetTask(GetTaskRequest(id=task.id), metadata=(*metadata, ("x-request-id", request_id)))
    assert len(call_line(service, request_id=request_id)["trace_id"]) == 32
    assert "a-marker-of-mine" not in service.log


@pytest.fixture(scope="module")
def traced(start: Callable[..., Any]) -> Iterator[ServiceProcess]:
    """A service that traces every call, unless its client does not."""
    with start(
        constants={"server.jobs.readiness.INTERVAL_SECONDS": 0.1},
        OTEL_TRACES_SAMPLER="parentbased_always_on",
        OTEL_SERVICE_NAME="t",
    ) as service:
        yield service


def test_a_trace_that_begins_here_has_one_id_in_the_log_and_in_its_spans(
    traced: ServiceProcess, collector: Collector
) -> None:
    """The span must have the trace id for which the sampler decided."""
    request_id = secrets.token_hex(8)
    with pytest.raises(grpc.RpcError):
        traced.stub().GetTask(NO_TASK, metadata=(("x-request-id", request_id),))
    line = call_line(traced, request_id=request_id)
    call = collector.await_server_span(line["trace_id"])
    assert call.parent_id == ""
    assert call.span_id == line["span_id"]


def test_the_service_has_the_name_that_it_is_given(
    traced: ServiceProcess, collector: Collector
) -> None:
    trace = new_trace()
    with pytest.raises(grpc.RpcError):
        traced.stub().GetTask(NO_TASK, metadata=trace.metadata())
    assert collector.await_server_span(trace.id).resource["service.name"] == "t"


def test_threads_of_the_service_leave_no_statements_without_a_trace(
    traced: ServiceProcess, collector: Collector
) -> None:
    """Readiness asks the database ten times a second here."""
    await_later_span(traced.stub(), collector)
    roots = {span.name for span in collector.spans() if not span.parent_id}
    assert roots <= {f"{SERVICE}/GetTask", "census"}


def test_telemetry_that_is_switched_off_exports_nothing(
    start: Callable[..., Any], shared_database_url: str
) -> None:
    with (
        running_collector() as own,
        start(
            OTEL_ENABLED="false",
            OTEL_EXPORTER_ENDPOINT=own.endpoint,
        ) as service,
    ):
        trace = new_trace()
        with pytest.raises(grpc.RpcError):
            service.stub().GetTask(NO_TASK, metadata=trace.metadata())
        assert call_line(service, trace_id=trace.id)["code"] == "NOT_FOUND"
        assert service.stop() == 0
        assert own.requests == 0
