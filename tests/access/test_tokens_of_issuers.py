"""Tokens of real issuers: Ed25519 by its new name, scopes in `scp`, and their expiry."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from server.settings import Settings
from storage.database import Database
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    CreateTaskRequest,
    ListTasksRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.access import READ, WRITE, StubOf
from tests.support.credentials import (
    AUDIENCE,
    ISSUER,
    SigningKey,
    bearer,
    claims,
    encoded,
    key_set,
    running_key_server,
)
from tests.support.errors import fails
from tests.support.service import await_ready
from tests.support.workers import running_worker

UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
DENIED = grpc.StatusCode.PERMISSION_DENIED

ED, RSA = SigningKey("EdDSA", "an ed25519 key"), SigningKey("RS256", "an rsa key")
DAY_SECONDS = 86_400


def jwks(*keys: dict[str, Any]) -> bytes:
    return json.dumps({"keys": keys}).encode()


# --- Ed25519 --------------------------------------------------------------------------------------


@pytest.fixture(params=["EdDSA", "Ed25519", None], ids="JWK {}".format)
def jwk(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The key as an issuer may publish it: with either name of its algorithm, or none."""
    jwk = {**ED.jwk, "alg": request.param}
    return {name: value for name, value in jwk.items() if value}


@pytest.fixture(params=["EdDSA", "Ed25519"], ids="ALGORITHM {}".format)
def channel(
    request: pytest.FixtureRequest, settings: Settings, database_url: str, jwk: dict[str, Any]
) -> Iterator[grpc.Channel]:
    """A channel to a service that is configured with either name."""
    with running_key_server(jwks(jwk)) as server:
        own = {
            "auth_mode": "jwt",
            "algorithm": request.param,
            "jwks_url": server.url,
            "jwt_issuer": ISSUER,
            "jwt_audience": AUDIENCE,
        }
        with running_worker(settings.model_copy(update=own), database_url) as channel:
            await_ready(channel)
            yield channel


def token(algorithm: str, private: Any = ED.private) -> str:
    """By hand: PyJWT does not know the new name."""
    signed = f"{encoded({'alg': algorithm, 'kid': ED.kid})}.{encoded(claims())}"
    return f"{signed}.{encoded(private.sign(signed.encode()))}"


def test_a_key_of_ed25519_is_good_by_both_names_of_it(
    channel: grpc.Channel, database: Database
) -> None:
    """RFC 8037 calls the algorithm EdDSA, RFC 9864 Ed25519."""
    stub = TaskServiceStub(channel)
    for algorithm in ("EdDSA", "Ed25519"):
        assert not stub.ListTasks(ListTasksRequest(), metadata=bearer(token(algorithm))).tasks
    unknown = SigningKey("EdDSA", "an unknown key")
    for forged in (token("Ed25519", unknown.private), token("Ed448"), token("RS256")):
        with fails(UNAUTHENTICATED, "UNAUTHENTICATED"):
            stub.ListTasks(ListTasksRequest(), metadata=bearer(forged))


# --- Keys that are left out -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("jwk", "why"),
    [
        ({**RSA.jwk, "alg": "Ed25519"}, "it is incomplete, or of a kind that is not known"),
        ({**RSA.jwk, "alg": "RS512"}, "its algorithm, RS512, is not one of ALGORITHM"),
        ({**RSA.jwk, "use": "enc"}, "its use is not sig"),
        ({**RSA.jwk, "kid": None}, "it has no kid"),
        ({"kty": "oct", "k": "c2VjcmV0"}, "it is no public key for signatures"),
        ({"kty": "OKP", "crv": "Ed448"}, "it is incomplete, or of a kind that is not known"),
    ],
    ids=["another kind", "another algorithm", "another use", "no kid", "a secret", "Ed448"],
)
def test_a_key_that_is_left_out_is_logged_with_its_kid(
    settings: Settings, database_url: str, jwk: dict[str, Any], why: str
) -> None:
    key_id = jwk.setdefault("kid", "x")
    with running_key_server(jwks(jwk, RSA.jwk)) as server, capture_logs() as logs:
        own = {
            "auth_mode": "jwt",
            "algorithm": "RS256,Ed25519",
            "jwks_url": server.url,
            "jwt_issuer": ISSUER,
            "jwt_audience": AUDIENCE,
        }
        with running_worker(settings.model_copy(update=own), database_url) as channel:
            await_ready(channel)
            lines = [line for line in logs if line["event"] == "keys are left out"]
    assert [(line["count"], line["why"]) for line in lines] == [(1, [f"{key_id}: {why}"])]
    assert "c2VjcmV0" not in str(logs)


def test_keys_that_are_all_taken_are_no_warning(settings: Settings, database_url: str) -> None:
    with running_key_server(key_set(RSA, ED)) as server, capture_logs() as logs:
        own = {
            "auth_mode": "jwt",
            "algorithm": "RS256,EdDSA",
            "jwks_url": server.url,
            "jwt_issuer": ISSUER,
            "jwt_audience": AUDIENCE,
        }
        with running_worker(settings.model_copy(update=own), database_url) as channel:
            await_ready(channel)
    assert not [line for line in logs if line["event"] == "keys are left out"]


# --- Scopes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scope", "scp"),
    [
        (None, [READ, WRITE]),
        (None, f"{READ} {WRITE}"),
        (READ, [WRITE]),
        ([WRITE], READ),
        ("", f"openid {READ} {WRITE} tasks:everything"),
        (f"{READ} {WRITE}", None),
    ],
)
def test_scopes_may_stand_in_scope_and_in_scp(stub_of: StubOf, scope: object, scp: object) -> None:
    """Okta and Entra have the latter. Both count."""
    stub = stub_of("ann", scope=scope, scp=scp)
    task = stub.CreateTask(CreateTaskRequest(task=Task(title="a task")))
    assert [task.id for task in stub.ListTasks(ListTasksRequest()).tasks] == [task.id]


@pytest.mark.parametrize("scp", [[], "", ["tasks:READ"], ["tasks:read tasks:write"], ["roles"]])
def test_what_is_no_scope_in_scp_permits_nothing(stub_of: StubOf, scp: object) -> None:
    with fails(DENIED, "PERMISSION_DENIED"):
        stub_of("ann", scope=None, scp=scp).ListTasks(ListTasksRequest())


# --- How long a token lives -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("issued", "expires"),
    [(0, DAY_SECONDS), (-DAY_SECONDS + 600, 600), (-60, 600)],
    ids=["a day", "a day, nearly over", "minutes"],
)
def test_a_token_may_live_for_a_day(stub_of: StubOf, issued: int, expires: int) -> None:
    now = int(time.time())
    stub_of("ann", READ, iat=now + issued, exp=now + expires).ListTasks(ListTasksRequest())


@pytest.mark.parametrize(
    ("issued", "expires"),
    [
        (0, DAY_SECONDS + 1),
        (0, 100 * 365 * DAY_SECONDS),
        (-DAY_SECONDS, 600),
        (-50 * 365 * DAY_SECONDS, 600),
        (3600, 7200),
    ],
    ids=["a day and a second", "a century", "since yesterday", "half a century", "from later on"],
)
def test_a_token_with_a_longer_life_is_refused(stub_of: StubOf, issued: int, expires: int) -> None:
    now = int(time.time())
    with fails(UNAUTHENTICATED, "UNAUTHENTICATED"):
        stub_of("ann", READ, iat=now + issued, exp=now + expires).ListTasks(ListTasksRequest())


def test_the_log_says_that_a_token_lives_too_long(stub_of: StubOf) -> None:
    now = int(time.time())
    with capture_logs() as logs, fails(UNAUTHENTICATED, "UNAUTHENTICATED"):
        stub_of("ann", READ, iat=now, exp=now + 2 * DAY_SECONDS).ListTasks(ListTasksRequest())
    (line,) = [line for line in logs if line["event"] == "token refused"]
    assert line["why"] == "the token lives longer than 1440 minutes"
    assert line["log_level"] == "debug"
