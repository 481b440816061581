"""Bearer tokens: when they are renewed, and what follows a refusal."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from itertools import count

import grpc
import jwt
import pytest

from servers import Failure, failing
from taskservice_client import (
    AsyncTaskClient,
    PermissionDenied,
    TaskClient,
    Unauthenticated,
    WatchEventType,
)
from taskservice_client.tokens import expiry_of, renewal_of
from tests.support.credentials import SECRET_KEY
from tests.support.service import ServiceProcess, running_service

REFUSED = Failure(grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
AWAY = Failure(grpc.StatusCode.UNAVAILABLE)
DENIED = Failure(grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")
WITHOUT_RETRIES = [("grpc.enable_retries", 0)]
LEEWAY_SECONDS = 30  # For which the service accepts an expired token.
ID = "01a21b10-defa-776c-b031-167c29da6c00"


def token(seconds: float, name: str = "ann") -> str:
    """A token of the service's own that is valid for this long."""
    now = time.time()
    claims = {"sub": name, "scope": "tasks:read tasks:write", "iat": now, "exp": now + seconds}
    return jwt.encode(claims, SECRET_KEY, "HS256")


def numbered(seconds: float) -> Callable[[], str]:
    """Return a function that makes another token each time."""
    numbers = count()
    return lambda: token(seconds, f"ann {next(numbers)}")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A service that requires tokens."""
    folder = tmp_path_factory.mktemp("guarded")
    with running_service(folder, AUTH_MODE="jwt", SECRET_KEY=SECRET_KEY) as service:
        yield service


def sent(metadata: list[dict[str, str | bytes]]) -> list[str]:
    """The principals of the tokens that arrived."""
    tokens = [str(each["authorization"]).removeprefix("Bearer ") for each in metadata]
    return [
        jwt.decode(each, SECRET_KEY, ["HS256"], options={"verify_exp": False})["sub"]
        for each in tokens
    ]


@pytest.mark.parametrize(
    ("seconds", "principals"),
    [(3600, ["ann 0", "ann 0"]), (-1, ["ann 0", "ann 1"])],
    ids=["valid", "expired"],
)
def test_a_token_is_kept_until_it_expires(seconds: float, principals: list[str]) -> None:
    with failing() as (address, server), TaskClient(address, token=numbered(seconds)) as client:
        client.get(ID)
        client.get(ID)
    assert sent([call.metadata for call in server.received]) == principals


def test_a_refused_token_is_renewed_once() -> None:
    with (
        failing(REFUSED) as (address, server),
        TaskClient(address, token=numbered(3600)) as client,
    ):
        client.get(ID)
    assert sent([call.metadata for call in server.received]) == ["ann 0", "ann 1"]


def test_a_second_refusal_is_raised() -> None:
    with (
        failing(REFUSED, REFUSED) as (address, server),
        TaskClient(address, token=numbered(3600)) as client,
        pytest.raises(Unauthenticated),
    ):
        client.get(ID)
    assert len(server.received) == 2


def test_a_fixed_token_that_is_refused_is_not_sent_again() -> None:
    with (
        failing(REFUSED) as (address, server),
        TaskClient(address, token=token(3600)) as client,
        pytest.raises(Unauthenticated),
    ):
        client.get(ID)
    assert len(server.received) == 1


def test_a_valid_token_is_used_while_another_cannot_be_obtained() -> None:
    tokens = iter([token(10)])

    def obtain() -> str:
        for each in tokens:
            return each
        raise ConnectionError("the issuer is away")

    with failing() as (address, server), TaskClient(address, token=obtain) as client:
        client.get(ID)
        client._calls.token._renew_at = 0.0
        client.get(ID)
    assert sent([call.metadata for call in server.received]) == ["ann", "ann"]


def test_an_error_of_the_issuer_is_raised_without_a_valid_token() -> None:
    def obtain() -> str:
        raise ConnectionError("the issuer is away")

    with TaskClient("127.0.0.1:1", token=obtain) as client, pytest.raises(ConnectionError):
        client.get(ID)


@pytest.mark.parametrize("kind", [False, True], ids=["function", "coroutine function"])
def test_the_client_for_asyncio_calls_both_kinds_of_functions(
    guarded: ServiceProcess, kind: bool
) -> None:
    async def obtain() -> str:
        return token(3600)

    async def run() -> None:
        source = obtain if kind else lambda: token(3600)
        async with AsyncTaskClient(f"127.0.0.1:{guarded.port}", token=source) as client:
            assert (await client.create(title="a task")).created_by == "ann"

    asyncio.run(run())


def test_a_watch_continues_with_new_tokens(guarded: ServiceProcess) -> None:
    """The service ends a watch when its token expires."""
    made: list[float] = []

    def obtain() -> str:
        made.append(time.time())
        return token(2 - LEEWAY_SECONDS)

    address = f"127.0.0.1:{guarded.port}"
    with (
        TaskClient(address, token=token(3600)) as writer,
        TaskClient(address, token=obtain) as client,
        client.watch("title:watched") as watch,
    ):
        assert next(watch).type is WatchEventType.BOOKMARK
        while len(made) < 3:
            writer.create(title="watched")
            while (event := next(watch)).type is WatchEventType.BOOKMARK:
                pass
            assert event.type is WatchEventType.ADDED


@pytest.mark.parametrize("failure", [REFUSED, AWAY], ids=lambda each: each.code.name)
def test_a_watch_survives_an_issuer_that_is_away(failure: Failure) -> None:
    """The second token is not obtained at once."""
    tokens = iter([token(-1), None, token(3600)])

    def obtain() -> str:
        if made := next(tokens):
            return made
        raise ConnectionError("the issuer is away")

    with (
        failing(failure, DENIED) as (address, server),
        TaskClient(address, token=obtain, options=WITHOUT_RETRIES) as client,
        pytest.raises(PermissionDenied),
    ):
        next(client.watch())
    assert len(server.received) == 2


def test_a_watch_without_a_first_token_fails() -> None:
    def obtain() -> str:
        raise ConnectionError("the issuer is away")

    with TaskClient("127.0.0.1:1", token=obtain) as client, pytest.raises(ConnectionError):
        next(client.watch())


def test_the_expiry_of_a_jwt_is_read() -> None:
    now = time.time()
    assert expiry_of(token(100)) == pytest.approx(now + 100, abs=5)
    assert renewal_of(token(1000), now) == pytest.approx(now + 940, abs=5)
    assert renewal_of(token(100), now) == pytest.approx(now + 80, abs=5)


@pytest.mark.parametrize("opaque", ["", "a word", "a.b.c", "a.bnVsbA.c", "a.e30.c"])
def test_another_token_never_expires(opaque: str) -> None:
    assert expiry_of(opaque) == math.inf


def test_a_token_is_not_in_an_error(guarded: ServiceProcess) -> None:
    secret = token(-3600)
    with (
        TaskClient(f"127.0.0.1:{guarded.port}", token=secret) as client,
        pytest.raises(Unauthenticated) as raised,
    ):
        client.get(ID)
    assert secret not in f"{raised.value!r} {raised.value} {raised.value.__cause__}"
