"""The dashboard in Chromium, before a real gateway and service."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import jwt
import pytest
from playwright.sync_api import Locator, Page, expect

from taskservice.v1.task_pb2 import TASK_PRIORITY_URGENT, TASK_STATUS_COMPLETED, Task
from taskservice.v1.task_service_pb2 import (
    CreateTaskRequest,
    DeleteTaskRequest,
    ListTasksRequest,
    UpdateTaskRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.browser import accessibility_violations
from tests.support.credentials import SECRET_KEY, claims
from tests.support.databases import made_database
from tests.support.rest import running_gateway
from tests.support.service import running_service

OpenPage = Callable[..., Page]


@pytest.fixture
def create(grpc_stub: TaskServiceStub) -> Callable[..., Task]:
    """Creates a task by gRPC, as another client does."""

    def create(title: str, **fields: object) -> Task:
        task = Task(title=title, **fields)  # type: ignore[arg-type]
        return grpc_stub.CreateTask(CreateTaskRequest(task=task))

    return create


@pytest.fixture(autouse=True)
def _empty(grpc_stub: TaskServiceStub) -> Iterator[None]:
    yield
    for task in grpc_stub.ListTasks(ListTasksRequest(page_size=1000)).tasks:
        grpc_stub.DeleteTask(DeleteTaskRequest(id=task.id))


@pytest.fixture
def dashboard(open_page: OpenPage) -> Page:
    return opened(open_page())


def opened(page: Page) -> Page:
    """Wait for the first contents of a page."""
    expect(page.locator("#live")).to_have_text("Live")
    expect(page.locator("#chart svg")).to_be_visible()
    return page


def row(page: Page, title: str) -> Locator:
    return page.locator("#rows tr").filter(has_text=title)


def number(page: Page, name: str) -> Locator:
    return page.locator(f"[data-count={name}] b")


def test_a_task_is_created_and_completed(dashboard: Page, grpc_stub: TaskServiceStub) -> None:
    dashboard.get_by_role("button", name="New task").click()
    form = dashboard.get_by_role("dialog")
    form.get_by_label("Title").fill("Send the invoices")
    form.get_by_label("Priority").select_option("Urgent")
    form.get_by_label("Due").fill("2099-01-31T12:00")
    form.get_by_label("Tags").fill("billing, october")
    form.get_by_role("button", name="Create").click()
    expect(row(dashboard, "Send the invoices")).to_contain_text("Pending")
    expect(number(dashboard, "open")).to_have_text("1")

    dashboard.get_by_role("button", name="Complete Send the invoices").click()
    expect(row(dashboard, "Send the invoices")).to_contain_text("Completed")
    expect(number(dashboard, "completed")).to_have_text("1")

    (task,) = grpc_stub.ListTasks(ListTasksRequest()).tasks
    assert (task.status, task.priority) == (TASK_STATUS_COMPLETED, TASK_PRIORITY_URGENT)
    assert list(task.tags) == ["billing", "october"]
    assert task.due_date.seconds > 0


def test_a_change_by_another_client_appears_without_a_reload(
    dashboard: Page, create: Callable[..., Task], grpc_stub: TaskServiceStub
) -> None:
    dashboard.evaluate("window.isTheSamePage = true")
    task = create("From elsewhere")
    newest = dashboard.locator("#newest li").first
    expect(newest).to_have_text("createdFrom elsewherejust now")
    expect(row(dashboard, "From elsewhere")).to_contain_text("Pending")
    task.status = TASK_STATUS_COMPLETED
    grpc_stub.UpdateTask(UpdateTaskRequest(task=task))
    expect(newest).to_contain_text("completed")
    expect(row(dashboard, "From elsewhere")).to_contain_text("Completed")
    assert dashboard.evaluate("window.isTheSamePage")


def test_today_counts_what_is_created_and_completed(
    dashboard: Page, create: Callable[..., Task]
) -> None:
    create("open")
    create("done", status=TASK_STATUS_COMPLETED)
    today = dashboard.locator("#days tbody tr").last.locator("td")
    expect(today).to_have_text(["2", "1"])
    expect(dashboard.locator("#days tbody tr")).to_have_count(14)


def test_the_table_is_filtered_and_ordered(
    create: Callable[..., Task], open_page: OpenPage
) -> None:
    for title in ("beta one", "alpha one", "gamma two"):
        create(title)
    page = opened(open_page())
    titles = page.locator("#rows strong")
    page.get_by_label("Filter").fill("one")
    page.keyboard.press("Enter")
    expect(titles).to_have_count(2)
    heading = page.get_by_role("columnheader", name="Task")
    heading.get_by_role("button").click()
    expect(titles).to_have_text(["alpha one", "beta one"])
    expect(heading).to_have_attribute("aria-sort", "ascending")
    heading.get_by_role("button").click()
    expect(titles).to_have_text(["beta one", "alpha one"])


def test_a_count_filters_the_table(create: Callable[..., Task], open_page: OpenPage) -> None:
    create("urgent one", priority=TASK_PRIORITY_URGENT)
    create("usual one")
    page = opened(open_page())
    page.get_by_role("button", name="Urgent 1").click()
    expect(page.locator("#rows strong")).to_have_text(["urgent one"])


def test_more_tasks_than_a_page_are_shown_on_request(
    create: Callable[..., Task], open_page: OpenPage
) -> None:
    for index in range(30):
        create(f"task {index}")
    page = opened(open_page())
    rows = page.locator("#rows tr")
    expect(rows).to_have_count(25)
    page.get_by_role("button", name="Show more").click()
    expect(rows).to_have_count(30)
    expect(page.get_by_role("button", name="Show more")).to_be_hidden()


@pytest.mark.refused
def test_a_task_that_was_changed_elsewhere_is_not_completed(
    create: Callable[..., Task], open_page: OpenPage, grpc_stub: TaskServiceStub
) -> None:
    task = create("before")
    page = opened(open_page())
    page.route("**/tasks?filter=*", lambda _: None)  # Held until it is no longer routed.
    grpc_stub.UpdateTask(UpdateTaskRequest(task=Task(id=task.id, title="after")))
    page.get_by_role("button", name="Complete before").click()
    expect(page.locator("#notice")).to_contain_text("was written since")
    page.unroute("**/tasks?filter=*")
    expect(row(page, "after")).to_contain_text("Pending")
    expect(page.locator("#notice")).to_contain_text("was written since")


@pytest.mark.refused
def test_a_filter_that_is_wrong_says_where(dashboard: Page) -> None:
    dashboard.get_by_label("Filter").fill("status = NONE")
    dashboard.get_by_role("button", name="Apply").click()
    expect(dashboard.locator("#filter-error")).to_contain_text("NONE")


@pytest.mark.refused
def test_a_task_that_is_refused_stays_in_its_form(dashboard: Page) -> None:
    dashboard.get_by_role("button", name="New task").click()
    form = dashboard.get_by_role("dialog")
    form.get_by_label("Title").fill(" ")
    form.get_by_label("Due").fill("2001-01-01T12:00")
    form.get_by_role("button", name="Create").click()
    errors = dashboard.locator("#new-errors li")
    expect(errors.filter(has_text="title: must not be blank")).to_be_visible()
    form.get_by_label("Title").fill("a better title")
    form.get_by_label("Due").fill("")
    form.get_by_role("button", name="Create").click()
    expect(row(dashboard, "a better title")).to_be_visible()


def test_a_task_is_created_and_completed_by_keyboard(dashboard: Page) -> None:
    press = dashboard.keyboard.press
    for _ in range(5):  # The link over all, two links, the token.
        press("Tab")
    press("Enter")
    dashboard.keyboard.type("Typed")
    press("Enter")
    expect(row(dashboard, "Typed")).to_be_visible()
    dashboard.locator("#more, #rows button").first.focus()
    press("Enter")
    expect(row(dashboard, "Typed")).to_contain_text("Completed")
    expect(dashboard.get_by_role("button", name="Reopen Typed")).to_be_focused()


LOOKS = {"light": (1280, "light"), "dark": (1280, "dark"), "phone": (360, "dark")}


@pytest.mark.parametrize(("width", "scheme"), LOOKS.values(), ids=LOOKS)
def test_axe_finds_nothing(
    create: Callable[..., Task], open_page: OpenPage, width: int, scheme: Literal["light", "dark"]
) -> None:
    create("late", description="long ago", tags=["a"], priority=TASK_PRIORITY_URGENT)
    create("done", status=TASK_STATUS_COMPLETED, assigned_to="ann")
    page = opened(open_page(width=width, scheme=scheme))
    expect(page.locator("#rows tr")).to_have_count(2)
    assert accessibility_violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for button in ("New task", "Token"):
        page.get_by_role("button", name=button).click()
        assert accessibility_violations(page) == []
        page.keyboard.press("Escape")


@pytest.mark.refused
def test_a_token_is_asked_for_and_never_stored(
    tmp_path: Path, postgres_url: str, open_page: OpenPage
) -> None:
    with (
        made_database(postgres_url) as url,
        running_service(
            tmp_path / "service", DATABASE_URL=url, AUTH_MODE="jwt", SECRET_KEY=SECRET_KEY
        ) as service,
        running_gateway(tmp_path / "gateway", service) as gateway,
    ):
        page = open_page(gateway=gateway)
        dialog = page.get_by_role("dialog", name="Authorization token")
        token = jwt.encode(claims("ann", iss=None, aud=None), SECRET_KEY, "HS256")
        dialog.get_by_label("Token").fill(token)
        page.keyboard.press("Enter")
        opened(page)
        stored = "[localStorage.length, sessionStorage.length, document.cookie, location.search]"
        assert page.evaluate(stored) == [0, 0, "", ""]
        page.reload()
        expect(dialog).to_be_visible()
        page.close()
