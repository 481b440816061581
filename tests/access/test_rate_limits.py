"""Rate limits: the calls that a principal may make, and the error above the rate."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import grpc
import psutil
import pytest
from google.rpc import error_details_pb2

from server.calls.access import RateLimiter
from server.errors import RateLimitedError
from server.settings import Settings
from storage.database import Database
from taskservice.v1.task_service_pb2 import GetTaskStatsRequest
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.access import StubOf
from tests.support.credentials import SECRET_KEY
from tests.support.errors import fails
from tests.support.workers import running_worker

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
ANN, BOB = "ann", "bob"


class Clock:
    """The time as the limiter sees it."""

    now = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that stands still unless the test moves it."""
    clock = Clock()
    monkeypatch.setattr("throttled.utils.now_mono_f", lambda: clock.now)
    return clock


@pytest.fixture
def stub(
    settings: Settings, database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TaskServiceStub]:
    """A service that takes one call a second, and three at once."""
    monkeypatch.setattr("server.calls.access.BURST_SECONDS", 3)
    limited = settings.model_copy(update={"rate_limit_per_second": 1})
    with running_worker(limited, database_url) as channel:
        yield TaskServiceStub(channel)


@contextmanager
def suppress_denied() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.PERMISSION_DENIED:
            raise


def taken(limiter: RateLimiter, caller: str, calls: int) -> int:
    """How many of so many calls are taken."""
    count = 0
    for _ in range(calls):
        with suppress(RateLimitedError):
            limiter.check(caller)
            count += 1
    return count


def test_the_error_names_the_principal_that_exceeds_its_rate(stub: TaskServiceStub) -> None:
    with fails(EXHAUSTED, "RATE_LIMIT_EXCEEDED") as failure:
        for _ in range(1000):
            stub.GetTaskStats(GetTaskStatsRequest())
    (violation,) = failure.detail(error_details_pb2.QuotaFailure).violations
    assert violation.subject == "anonymous"


def test_the_error_says_how_long_to_wait(stub: TaskServiceStub) -> None:
    """Also in the trailer that gRPC's own retries obey."""
    with fails(EXHAUSTED, "RATE_LIMIT_EXCEEDED") as failure:
        for _ in range(1000):
            stub.GetTaskStats(GetTaskStatsRequest())
    delay = failure.detail(error_details_pb2.RetryInfo).retry_delay
    assert 0 < delay.ToMilliseconds() <= 1000
    assert failure.pushback == str(delay.ToMilliseconds())


def test_denied_calls_count_against_the_rate(
    token_settings: Settings, database_url: str, stub_of: StubOf
) -> None:
    limited = token_settings.model_copy(update={"rate_limit_per_second": 1})
    with (
        running_worker(limited, database_url) as channel,
        fails(EXHAUSTED, "RATE_LIMIT_EXCEEDED"),
    ):
        stub = stub_of("eve", at=(channel, SECRET_KEY))
        for _ in range(1000):
            with suppress_denied():
                stub.GetTaskStats(GetTaskStatsRequest())


def test_a_burst_is_taken(clock: Clock) -> None:
    assert taken(RateLimiter(1, burst=100), ANN, 150) == 100


def test_after_a_burst_the_rate_is_taken(clock: Clock) -> None:
    limiter = RateLimiter(20, burst=100)
    taken(limiter, ANN, 150)
    clock.now += 3.001
    assert taken(limiter, ANN, 150) == 60


def test_a_call_succeeds_after_the_reported_wait(clock: Clock) -> None:
    limiter = RateLimiter(10, burst=1)
    limiter.check(ANN)
    clock.now += 0.03
    with pytest.raises(RateLimitedError) as raised:
        limiter.check(ANN)
    assert raised.value.retry_seconds == pytest.approx(0.07)
    clock.now += raised.value.retry_seconds
    limiter.check(ANN)


def test_principals_have_separate_rates(clock: Clock) -> None:
    limiter = RateLimiter(1, burst=5)
    assert taken(limiter, ANN, 50) == 5
    assert taken(limiter, BOB, 50) == 5


def test_threads_that_call_at_once_get_no_more_than_one_would(clock: Clock) -> None:
    limiter = RateLimiter(1, burst=1000)
    with ThreadPoolExecutor(8) as pool:
        counts = list(pool.map(lambda _: taken(limiter, ANN, 500), range(8)))
    assert sum(counts) == 1000


def test_the_memory_of_many_principals_is_bounded() -> None:
    limiter = RateLimiter(1, burst=1)
    process = psutil.Process()
    before = process.memory_info().rss
    for number in range(250_000):
        limiter.check(f"principal {number}")
    assert process.memory_info().rss - before < 32 * 2**20
