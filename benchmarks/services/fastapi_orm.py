"""Serve four calls with FastAPI, pydantic and SQLAlchemy's ORM, as its tutorial does."""

from __future__ import annotations

import datetime as dt
import os
import uuid
from collections.abc import Iterator
from typing import Annotated

import uvicorn
from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Text, create_engine, func, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

engine = create_engine("postgresql+psycopg2://")
SessionLocal = sessionmaker(bind=engine)
app = FastAPI()


class Base(DeclarativeBase):
    pass


class TaskRecord(Base):
    __tablename__ = "tasks"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    title: Mapped[str]
    description: Mapped[str]
    status: Mapped[int] = mapped_column(default=1)
    priority: Mapped[int] = mapped_column(default=2)
    assigned_to: Mapped[str] = mapped_column(default="")
    due_date: Mapped[dt.datetime | None]
    tags: Mapped[list[str]] = mapped_column(ARRAY(Text))
    created_by: Mapped[str] = mapped_column(default="benchmark")
    created_at: Mapped[dt.datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[dt.datetime] = mapped_column(server_default=func.now())
    completed_at: Mapped[dt.datetime | None]
    deleted_at: Mapped[dt.datetime | None]


class NewTask(BaseModel):
    title: str = Field(min_length=1, max_length=200)
    description: str = Field("", max_length=2000)
    tags: list[str] = Field([], max_length=10)


class TaskOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: uuid.UUID
    title: str
    description: str
    status: int
    priority: int
    assigned_to: str
    due_date: dt.datetime | None
    tags: list[str]
    created_by: str
    created_at: dt.datetime
    updated_at: dt.datetime
    completed_at: dt.datetime | None
    deleted_at: dt.datetime | None


class StatsOut(BaseModel):
    total: int
    by_status: dict[int, int]
    by_priority: dict[int, int]
    overdue: int


def get_db() -> Iterator[Session]:
    with SessionLocal() as db:
        yield db


Db = Annotated[Session, Depends(get_db)]


@app.post("/tasks", response_model=TaskOut)
def create_task(new: NewTask, db: Db) -> TaskRecord:
    task = TaskRecord(**new.model_dump())
    db.add(task)
    db.commit()
    db.refresh(task)
    return task


@app.get("/tasks", response_model=list[TaskOut])
def list_tasks(db: Db, limit: int = 50, offset: int = 0) -> list[TaskRecord]:
    present = select(TaskRecord).where(TaskRecord.deleted_at.is_(None))
    ordered = present.order_by(TaskRecord.created_at, TaskRecord.id)
    return list(db.scalars(ordered.limit(limit).offset(offset)))


@app.get("/tasks/stats")
def task_stats(db: Db) -> StatsOut:
    present = TaskRecord.deleted_at.is_(None)
    overdue = present, TaskRecord.status <= 2, TaskRecord.due_date < func.now()

    def counts(column: Mapped[int]) -> dict[int, int]:
        groups = select(column, func.count()).where(present).group_by(column)
        return dict(db.execute(groups).tuples().all())

    return StatsOut(
        total=db.scalar(select(func.count()).where(present)) or 0,
        by_status=counts(TaskRecord.status),
        by_priority=counts(TaskRecord.priority),
        overdue=db.scalar(select(func.count()).where(*overdue)) or 0,
    )


@app.get("/tasks/{task_id}", response_model=TaskOut)
def get_task(task_id: uuid.UUID, db: Db) -> TaskRecord:
    task = db.get(TaskRecord, task_id)
    if task is None:
        raise HTTPException(404, "Task not found")
    return task


if __name__ == "__main__":
    uvicorn.run(
        "benchmarks.services.fastapi_orm:app",
        port=int(os.environ["PORT"]),
        workers=int(os.environ["WORKERS"]),
        timeout_worker_healthcheck=60,  # On a busy machine a worker takes long to start.
    )
