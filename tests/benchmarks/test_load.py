"""The load of the benchmarks, on a plain gRPC server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from benchmarks.load import LoadError, send_load
from benchmarks.requests import Request, grpc_request

pytestmark = pytest.mark.skipif(shutil.which("h2load") is None, reason="h2load is not installed")


class Echo:
    """Answer with the request, except for calls of these numbers."""

    def __init__(self) -> None:
        self.calls = 0
        self.failing: range = range(0)

    def __call__(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.calls += 1
        if self.calls in self.failing:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls")
        return request


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def address(echo: Echo) -> Iterator[str]:
    method: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(echo)
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("Echo", {"Call": method})]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def request(expected: bytes = b"hello") -> Request:
    return grpc_request("/Echo/Call", b"hello", lambda answer: answer == expected)


def test_load_sends_the_calls_and_orders_their_latencies(echo: Echo, address: str) -> None:
    load = send_load(address, [request()], connections=2, calls=20)

    assert load.calls == 20
    assert 0 < load.p50_ms <= load.p99_ms
    assert echo.calls == 21  # The last one checks the answer.


def test_requests_share_the_connections(echo: Echo, address: str) -> None:
    load = send_load(address, [request(), request()], connections=4, calls=10)

    assert load.calls == 10


def test_load_with_failed_calls_gives_no_figures(echo: Echo, address: str) -> None:
    """A failed gRPC call has HTTP status 200: h2load counts it as succeeded."""
    echo.failing = range(5, 15)

    with pytest.raises(LoadError):
        send_load(address, [request()], connections=1, calls=20)


def test_wrong_answer_is_an_error(address: str) -> None:
    with pytest.raises(ValueError, match="wrong answer"):
        request(expected=b"other").send(address)
