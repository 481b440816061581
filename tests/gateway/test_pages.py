"""The pages about the API in Chromium, and the headers of all pages."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from taskservice.v1.task_service_pb2 import GetTaskRequest
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.rest import Gateway

OpenPage = Callable[..., Page]


def test_swagger_ui_creates_a_task(open_page: OpenPage, grpc_stub: TaskServiceStub) -> None:
    page = open_page("/docs")
    page.locator('.opblock-post [data-path="/tasks"]').click()
    page.get_by_role("button", name="Try it out").click()
    page.locator("textarea.body-param__text").fill('{"title": "Sent from the page"}')
    page.get_by_role("button", name="Execute").click()
    answer = page.locator(".live-responses-table .response").first
    expect(answer.locator(".response-col_status")).to_contain_text("201")
    expect(answer.locator(".highlight-code").first).to_contain_text("Sent from the page")
    location = answer.locator(".headerline").filter(has_text="location").inner_text()
    task = grpc_stub.GetTask(GetTaskRequest(id=location.split("/tasks/")[1].strip()))
    assert task.title == "Sent from the page"


def test_redoc_shows_the_operations(open_page: OpenPage) -> None:
    page = open_page("/redoc")
    expect(page.locator('[data-section-id$="operation/CreateTask"]').first).to_be_visible()
    page.get_by_placeholder("Search").fill("CreateTask")
    expect(page.locator('[data-role="search:results"] [role=menuitem]').first).to_be_visible()


@pytest.mark.parametrize("path", ["/", "/docs", "/redoc", "/dashboard.js", "/openapi.json"])
def test_a_page_loads_scripts_of_its_own_origin_only(gateway: Gateway, path: str) -> None:
    answer = gateway.call(f"GET {path}")
    policy = answer.headers["content-security-policy"].split("; ")
    assert answer.status == 200
    assert "default-src 'self'" in policy
    assert not [rule for rule in policy if rule.startswith("script-src")]
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "x-static" not in answer.headers


def test_the_dashboard_has_no_inline_styles(gateway: Gateway) -> None:
    policy = gateway.call("GET /").headers["content-security-policy"]
    assert "unsafe-inline" not in policy


def test_a_page_has_its_content_type(gateway: Gateway) -> None:
    types = {
        "/docs": "text/html; charset=utf-8",
        "/dashboard.css": "text/css; charset=utf-8",
        "/swagger-ui-bundle.js": "text/javascript; charset=utf-8",
        "/redoc.standalone.js": "text/javascript; charset=utf-8",
        "/favicon.svg": "image/svg+xml",
        "/openapi.json": "application/json",
    }
    found = {path: gateway.call(f"GET {path}").headers["content-type"] for path in types}
    assert found == types
