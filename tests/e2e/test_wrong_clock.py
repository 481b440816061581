"""A process whose clock is wrong: the clock that stamped the rows decides.

Debian's libfaketime gives the process another time than PostgreSQL has.
"""

from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from storage.database import Database
from storage.repository import TaskRepository
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    BatchCreateTasksRequest,
    CreateTaskRequest,
    GetTaskStatsRequest,
    UpdateTaskRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.errors import fails
from tests.support.postgres import execute
from tests.support.programs import debian_program
from tests.support.service import ServiceProcess
from tests.support.watching import create_by_hand, delete_by_hand

INVALID = grpc.StatusCode.INVALID_ARGUMENT

StartService = Callable[..., ServiceProcess]


def in_days(days: float) -> Timestamp:
    moment = Timestamp()
    moment.FromDatetime(dt.datetime.now(dt.UTC) + dt.timedelta(days=days))
    return moment


def faked_time(days: int) -> dict[str, str]:
    """The environment of a process whose clock is wrong by so many days."""
    program = Path(debian_program("faketime", "faketime"))
    (library,) = program.parent.parent.glob("lib/*/faketime/libfaketimeMT.so.1")
    return {
        "FAKETIME": f"{days:+}d",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "LD_PRELOAD": str(library),
    }


@pytest.fixture(params=[40, -40], ids=["ahead", "behind"])
def stub(
    start_service: StartService, own_database_url: str, request: pytest.FixtureRequest
) -> TaskServiceStub:
    service = start_service(DATABASE_URL=own_database_url, **faked_time(days=request.param))
    return service.stub()


def test_a_due_date_in_the_future_is_taken(stub: TaskServiceStub) -> None:
    task = Task(title="one", due_date=in_days(1))
    created = stub.CreateTask(CreateTaskRequest(task=task))
    later = Task(id=created.id, due_date=in_days(2))
    assert stub.UpdateTask(UpdateTaskRequest(task=later)).due_date == later.due_date


def test_a_due_date_in_the_past_is_refused(stub: TaskServiceStub) -> None:
    creation = CreateTaskRequest(task=Task(title="one", due_date=in_days(-1)))
    created = stub.CreateTask(CreateTaskRequest(task=Task(title="two")))
    with fails(INVALID, "INVALID_REQUEST"):
        stub.CreateTask(creation)
    with fails(INVALID, "INVALID_REQUEST"):
        stub.BatchCreateTasks(BatchCreateTasksRequest(requests=[creation]))
    with fails(INVALID, "INVALID_REQUEST"):
        stub.UpdateTask(UpdateTaskRequest(task=Task(id=created.id, due_date=in_days(-1))))


def test_tasks_are_overdue_by_the_clock_of_the_database(
    stub: TaskServiceStub, own_database_url: str
) -> None:
    for days in (1, 2, 50):
        stub.CreateTask(CreateTaskRequest(task=Task(title="one", due_date=in_days(days))))
    execute(own_database_url, "UPDATE tasks SET due_date = due_date - interval '36 hours'")
    stats = stub.GetTaskStats(GetTaskStatsRequest())
    assert stats.overdue == 1
    off = stats.as_of.ToDatetime(dt.UTC) - dt.datetime.now(dt.UTC)
    assert abs(off) < dt.timedelta(days=1)


KEEP = """
from server.jobs.retention import Maintenance
from server.settings import Settings
from storage.database import Database

settings = Settings()
print(Maintenance(Database(settings.explicit_database_url), settings).run_once())
"""


def test_nothing_is_removed_before_its_time(own_database_url: str) -> None:
    database = Database(own_database_url)
    repository = TaskRepository(database)
    delete_by_hand(repository, create_by_hand(repository, str(uuid.uuid4())).id)
    database.close()
    environment = os.environ | faked_time(days=400) | {"DATABASE_URL": own_database_url}
    done = subprocess.run(
        [sys.executable, "-c", KEEP], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str({"requests": 0, "events": 0, "tasks": 0})
