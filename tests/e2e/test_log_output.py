"""The log's far end: who reads it may go away, and must never see the callers' data."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import grpc

from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import CreateTaskRequest
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.e2e.service import PATIENCE_SECONDS, ServiceProcess, environment

StartService = Callable[..., ServiceProcess]


def test_calls_succeed_when_nobody_reads_the_log(tmp_path: Path, own_database_url: str) -> None:
    """The write has been committed by then: to say that it failed would be a lie."""
    settings = {"ENVIRONMENT": "development", "DATABASE_URL": own_database_url, "GRPC_PORT": "0"}
    reader, writer = os.pipe()
    service = subprocess.Popen(
        [sys.executable, "-m", "server", "serve"],
        env=environment(tmp_path, settings),
        cwd=tmp_path,
        stdout=writer,
    )
    os.close(writer)
    with os.fdopen(reader) as log:
        serving = next(line for line in log if "serving" in line)
    port = serving.partition("address=")[2].split()[0].rpartition(":")[2]
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        grpc.channel_ready_future(channel).result(PATIENCE_SECONDS)
        task = TaskServiceStub(channel).CreateTask(CreateTaskRequest(task=Task(title="heard")))
    assert task.title == "heard"
    service.terminate()
    assert service.wait(PATIENCE_SECONDS) == 0


def test_debug_shows_statements_and_no_data(
    start_service: StartService, own_database_url: str
) -> None:
    service = start_service(ENVIRONMENT="staging", DATABASE_URL=own_database_url, DEBUG="true")
    service.stub().CreateTask(CreateTaskRequest(task=Task(title="a marker of mine")))
    service.await_log("INSERT INTO tasks")
    assert service.stop() == 0
    assert "a marker of mine" not in service.log
