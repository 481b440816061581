"""Scrape a service after all kinds of errors with Prometheus: dashboard and rules have data."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import grpc
import promql_parser as promql
import pytest

from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    CreateTaskRequest,
    DeleteTaskRequest,
    GetTaskRequest,
    GetTaskStatsRequest,
    ListTasksRequest,
    UndeleteTaskRequest,
    UpdateTaskRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support import queries
from tests.support.databases import made_database
from tests.support.postgres import await_waiting, execute, locked_task
from tests.support.prometheus import Prometheus, running_prometheus
from tests.support.service import ServiceProcess, await_ready, running_service, wait_until
from tests.support.watching import Watch

WORKERS = 2
_CALLS = 2
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = ("traceparent", f"00-{TRACE_ID}-00f067aa0ba902b7-01")


@pytest.fixture(scope="module")
def url(postgres_url: str) -> Iterator[str]:
    with made_database(postgres_url) as url:
        yield url


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, url: str) -> Iterator[ServiceProcess]:
    """A service that has little of everything, and every call of which is traced."""
    with running_service(
        tmp_path_factory.mktemp("service"),
        (),
        {
            "server.tasks.watches.MAX_WATCHES": 1,
            "server.jobs.census.INTERVAL_SECONDS": 1,
        },
        ENVIRONMENT="staging",
        DATABASE_URL=url,
        WORKERS=str(WORKERS),
        METRICS_PORT="0",
        THREADS_PER_WORKER=str(_CALLS),
        MAX_CONCURRENT_CALLS=str(_CALLS),
        OTEL_TRACES_SAMPLER="always_on",
    ) as service:
        yield service


@pytest.fixture(scope="module")
def prometheus(
    prometheus_program: str,
    tmp_path_factory: pytest.TempPathFactory,
    service: ServiceProcess,
    url: str,
) -> Iterator[Prometheus]:
    """A Prometheus that scraped the service and evaluated the rules, after all kinds of errors."""
    channel = service.channel()
    await_ready(channel)
    stub = TaskServiceStub(channel)
    _use_it(channel)
    _cause_unexpected_errors(stub, url)
    _call_more_than_is_taken(stub, url)
    with (
        _more_watches_than_are_taken(stub),
        running_prometheus(
            prometheus_program,
            tmp_path_factory.mktemp("prometheus"),
            f"127.0.0.1:{service.events('serving')[0]['metrics']}",
        ) as prometheus,
    ):
        wait_until(lambda: _has_settled(prometheus), "Prometheus has seen all")
        yield prometheus


def _use_it(channel: grpc.Channel) -> None:
    stub = TaskServiceStub(channel)
    task = stub.CreateTask(CreateTaskRequest(task=Task(title="a task")))
    stub.GetTask(GetTaskRequest(id=task.id))
    stub.UpdateTask(UpdateTaskRequest(task=Task(id=task.id, title="a title")))
    stub.ListTasks(ListTasksRequest())
    stub.GetTaskStats(GetTaskStatsRequest())
    stub.DeleteTask(DeleteTaskRequest(id=task.id))
    stub.UndeleteTask(UndeleteTaskRequest(id=task.id), metadata=(TRACEPARENT,))
    with pytest.raises(grpc.RpcError):
        stub.GetTask(GetTaskRequest(id=str(uuid.uuid4())))
    with pytest.raises(grpc.RpcError):
        channel.unary_unary("/taskservice.v1.TaskService/NoSuchMethod", bytes, bytes)(b"")


def _cause_unexpected_errors(stub: TaskServiceStub, url: str) -> None:
    """A table is gone."""
    create = CreateTaskRequest(task=Task(title="a task"), request_id=str(uuid.uuid4()))
    execute(url, "ALTER TABLE requests RENAME TO away")
    with pytest.raises(grpc.RpcError) as raised:
        stub.CreateTask(create)
    execute(url, "ALTER TABLE away RENAME TO requests")
    assert raised.value.code() is grpc.StatusCode.INTERNAL


def _call_more_than_is_taken(stub: TaskServiceStub, url: str) -> None:
    task = stub.CreateTask(CreateTaskRequest(task=Task(title="a task")))
    update = UpdateTaskRequest(task=Task(id=task.id, title="a title"))
    with locked_task(url, task.id):
        waiting: Any = [stub.UpdateTask.future(update) for _ in range(_CALLS)]
        await_waiting(url, _CALLS - 1)  # One caller never has all threads.
        with pytest.raises(grpc.RpcError) as raised:
            stub.UpdateTask(update)
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    for call in waiting:
        call.result()


@contextmanager
def _more_watches_than_are_taken(stub: TaskServiceStub) -> Iterator[None]:
    watch = Watch(stub)
    watch.bookmark()
    with pytest.raises(grpc.RpcError) as raised:
        Watch(stub).next()
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    yield
    watch.cancel()


def _has_settled(prometheus: Prometheus) -> bool:
    """Rates need two samples; and what rules record, other rules read."""
    rules = prometheus.rules()
    return (
        bool(rules)
        and all(rule["health"] != "unknown" for rule in rules)
        and prometheus.query("min(count_over_time(job:taskservice_calls:rate5m[1h])) > 2") != []
    )


def test_all_workers_are_one_target(prometheus: Prometheus) -> None:
    (target,) = prometheus.ask("targets", state="active")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    workers = {series["worker"] for series in prometheus.series("taskservice_ready")}
    assert workers == {str(number) for number in range(WORKERS)}


def test_rules_are_evaluated(prometheus: Prometheus) -> None:
    assert len(prometheus.rules()) == len(queries.rules())
    assert [rule for rule in prometheus.rules() if rule["health"] != "ok"] == []


def test_the_alert_of_unexpected_errors_fires(prometheus: Prometheus) -> None:
    query = 'ALERTS{alertname="TaskServiceInternalErrors"}'
    (alert,) = wait_until(partial(prometheus.query, query), "the alert fires")
    assert alert["grpc_method"] == "taskservice.v1.TaskService/CreateTask"


@pytest.mark.parametrize("origin", ["rules", "dashboard", "runbooks"])
def test_every_query_reads_what_is_there(prometheus: Prometheus, origin: str) -> None:
    """By its name and by the values of its labels: a series that is not there never alarms."""
    selectors = {
        metric for query in queries.of(origin) for metric in queries.selectors(promql.parse(query))
    }
    assert [selector for selector in selectors if not prometheus.series(selector)] == []


@pytest.mark.parametrize("origin", ["rules", "dashboard", "runbooks"])
def test_every_label_that_is_grouped_by_is_there(prometheus: Prometheus, origin: str) -> None:
    for query in queries.of(origin):
        for label, expression in queries.groupings(promql.parse(query)):
            read = queries.selectors(expression)
            labels = {
                name for metric in read for series in prometheus.series(metric) for name in series
            }
            assert label in labels, query


def test_every_panel_shows_something_and_can_name_it(prometheus: Prometheus) -> None:
    """Awaited: a series is missing for a second if the scrape before took longer than that."""
    for panel, query, labels in queries.targets():
        lines = wait_until(partial(prometheus.query, query), panel)
        assert [line for line in lines if not set(labels) <= set(line)] == [], panel


def test_exemplar_leads_to_the_trace_of_a_call(prometheus: Prometheus) -> None:
    method = 'grpc_method="taskservice.v1.TaskService/UndeleteTask"'
    found = prometheus.ask(
        "query_exemplars",
        query=f"grpc_server_call_duration_seconds_bucket{{{method}}}",
        start=str(time.time() - 3600),
        end=str(time.time()),
    )
    exemplars = [exemplar for series in found for exemplar in series["exemplars"]]
    assert {exemplar["labels"]["trace_id"] for exemplar in exemplars} == {TRACE_ID}
