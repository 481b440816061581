"""Calls by gRPC-Web from a page in Chromium, by its origin."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import CreateTaskRequest, GetTaskRequest
from tests.support.browser import new_page
from tests.support.rest import Gateway, running_gateway
from tests.support.service import ServiceProcess

# A call whose answer is the bytes of the body, or the name of the exception that fetch raises.
CALL = """
async ({ url, message }) => {
  const headers = { "content-type": "application/grpc-web+proto", "x-grpc-web": "1" };
  const frame = new Uint8Array([0, 0, 0, 0, message.length, ...message]);
  try {
    const response = await fetch(url, { method: "POST", headers, body: frame });
    return {
      status: response.headers.get("grpc-status"),
      body: Array.from(new Uint8Array(await response.arrayBuffer())),
    };
  } catch (error) {
    return { error: error.name };
  }
}
"""


class _EmptyPage(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def origin() -> Iterator[str]:
    """Serve an empty page on an origin of its own."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _EmptyPage) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def allowed_origin() -> Iterator[str]:
    with origin() as url:
        yield url


@pytest.fixture(scope="module")
def gateway(
    tmp_path_factory: pytest.TempPathFactory, service: ServiceProcess, allowed_origin: str
) -> Iterator[Gateway]:
    folder: Path = tmp_path_factory.mktemp("gateway")
    with running_gateway(folder, service, CORS_ORIGINS=allowed_origin) as gateway:
        yield gateway


@pytest.fixture
def call(browser: Browser, gateway: Gateway) -> Iterator[Callable[..., dict[str, object]]]:
    """Calls a method by gRPC-Web from a page of this origin."""
    pages: list[Page] = []

    def call(origin: str, method: str, message: bytes) -> dict[str, object]:
        pages.append(new_page(browser))
        pages[-1].goto(origin)
        url = f"{gateway.origin}/taskservice.v1.TaskService/{method}"
        answer: dict[str, object] = pages[-1].evaluate(CALL, {"url": url, "message": list(message)})
        return answer

    yield call
    for page in pages:
        page.close()


def frames(body: bytes) -> list[tuple[int, bytes]]:
    """Return the frames of a body: their flags and contents."""
    found = []
    while body:
        end = 5 + int.from_bytes(body[1:5], "big")
        found.append((body[0], body[5:end]))
        body = body[end:]
    return found


def test_a_call_from_an_allowed_origin_passes(
    call: Callable[..., dict[str, object]], allowed_origin: str, service: ServiceProcess
) -> None:
    task = service.stub().CreateTask(CreateTaskRequest(task=Task(title="by gRPC")))
    request = GetTaskRequest(id=task.id).SerializeToString()
    answer = call(allowed_origin, "GetTask", request)
    (_, message), (flags, trailers) = frames(bytes(answer["body"]))  # type: ignore[call-overload]
    assert Task.FromString(message) == task
    assert flags == 0x80
    assert b"grpc-status:0" in trailers


def test_an_error_from_an_allowed_origin_has_its_status(
    call: Callable[..., dict[str, object]], allowed_origin: str
) -> None:
    request = GetTaskRequest(id="0198c5c0-0000-7000-8000-000000000000").SerializeToString()
    assert call(allowed_origin, "GetTask", request)["status"] == "5"


def test_a_call_from_another_origin_is_refused(
    call: Callable[..., dict[str, object]], allowed_origin: str
) -> None:
    with origin() as other_origin:
        assert call(other_origin, "GetTaskStats", b"") == {"error": "TypeError"}
    assert "error" not in call(allowed_origin, "GetTaskStats", b"")
