"""A gateway before a service, which the tests of a module share."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.browser import Faults, chromium, new_page
from tests.support.rest import Gateway, running_gateway
from tests.support.service import ServiceProcess

ORIGIN = "https://app.example"
CreateTask = Callable[..., dict[str, str]]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, service: ServiceProcess) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("gateway")
    with running_gateway(folder, service, CORS_ORIGINS=f"{ORIGIN}, https://b.example") as gateway:
        yield gateway


@pytest.fixture(scope="module")
def grpc_stub(service: ServiceProcess) -> TaskServiceStub:
    return service.stub()


@pytest.fixture(scope="module")
def kept(gateway: Gateway) -> str:
    """The id of a task that a module shares."""
    return str(gateway.call("POST /tasks", {"title": "a task"}).json["id"])


@pytest.fixture(scope="module")
def task(gateway: Gateway) -> CreateTask:
    """Creates a task with these fields, by REST."""

    def create(**fields: object) -> dict[str, str]:
        answer = gateway.call("POST /tasks", {"title": "a task", **fields})
        assert answer.status == 201, answer.body
        created: dict[str, str] = answer.json
        return created

    return create


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def open_page(
    browser: Browser, gateway: Gateway, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Page]]:
    """Opens a page of the gateway. Fails if a page has an error or loads from elsewhere.

    A test with the mark `refused` has requests that fail, which Chromium reports as errors.
    """
    faults, pages = Faults(), []
    shared = gateway

    def open_page(path: str = "/", gateway: Gateway = shared, **look: Any) -> Page:
        page = new_page(browser, **look)
        pages.append(page)
        faults.watch(page, gateway.origin)
        page.goto(f"{gateway.origin}{path}")
        return page

    yield open_page
    for page in pages:
        page.close()
    is_refused = request.node.get_closest_marker("refused") is not None
    assert [each for each in faults if not (is_refused and "Failed to load" in each)] == []
