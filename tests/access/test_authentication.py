"""Authentication: the principal that a token names, and tokens that are refused."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from structlog.testing import capture_logs

from server.settings import Settings
from storage.database import Database
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    CreateTaskRequest,
    GetTaskRequest,
    GetTaskStatsRequest,
    ListTaskEventsRequest,
    WatchTasksRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.access import counted_statements
from tests.support.credentials import (
    AUDIENCE,
    ISSUER,
    SECRET_KEY,
    KeyServer,
    Metadata,
    SigningKey,
    bearer,
    claims,
    encoded,
    key_set,
    running_key_server,
)
from tests.support.errors import fails
from tests.support.service import await_ready, wait_until
from tests.support.workers import running_worker

UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED

RSA, EC, ED = (SigningKey(name, f"the {name} key") for name in ("RS256", "ES256", "EdDSA"))
UNKNOWN_KEY = SigningKey("RS256", "an unknown key")

Call = Callable[..., Any]


@pytest.fixture(scope="module")
def key_server() -> Iterator[KeyServer]:
    with running_key_server(key_set(RSA, EC, ED)) as server:
        yield server


@pytest.fixture(scope="module")
def issuers_channel(
    settings: Settings, database_url: str, key_server: KeyServer
) -> Iterator[grpc.Channel]:
    """A channel to a service that accepts any algorithm and requests keys only once."""
    changed = {
        "auth_mode": "jwt",
        "algorithm": "HS256,RS256,ES256,EdDSA",
        "secret_key": SecretStr(SECRET_KEY),
        "jwks_url": key_server.url,
        "jwt_issuer": ISSUER,
        "jwt_audience": AUDIENCE,
    }
    with running_worker(settings.model_copy(update=changed), database_url) as channel:
        await_ready(channel)
        yield channel


@pytest.fixture
def stub(issuers_channel: grpc.Channel, database: Database) -> TaskServiceStub:
    return TaskServiceStub(issuers_channel)


def secret_token(content: dict[str, Any], key: str = SECRET_KEY, **header: object) -> str:
    return jwt.encode(content, key, "HS256", headers=header)


def public_pem(key: SigningKey) -> bytes:
    pem: bytes = key.private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return pem


def signed_with_the_public_key() -> str:
    """By hand: PyJWT does not lend itself to it."""
    content = f"{encoded({'alg': 'HS256', 'kid': RSA.kid})}.{encoded(claims())}"
    algorithm = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    return f"{content}.{encoded(algorithm.sign(content.encode(), public_pem(RSA)))}"


def changed(token: str, part: int) -> str:
    """A token with one character of a part changed."""
    parts = token.split(".")
    parts[part] = ("B" if parts[part][0] == "A" else "A") + parts[part][1:]
    return ".".join(parts)


# --- Good tokens ----------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [RSA, EC, ED], ids=lambda key: key.algorithm)
def test_a_token_of_each_public_key_names_its_caller(
    stub: TaskServiceStub, key: SigningKey
) -> None:
    token = bearer(key.sign(claims("ann")))
    task = stub.CreateTask(CreateTaskRequest(task=Task(title="a task")), metadata=token)
    assert task.created_by == "ann"


def test_a_token_of_the_secret_key_names_its_caller(stub: TaskServiceStub) -> None:
    token = bearer(secret_token(claims("bob")))
    task = stub.CreateTask(CreateTaskRequest(task=Task(title="a task")), metadata=token)
    assert task.created_by == "bob"


def test_an_event_names_the_caller(stub: TaskServiceStub) -> None:
    token = bearer(RSA.sign(claims("ann")))
    task = stub.CreateTask(CreateTaskRequest(task=Task(title="a task")), metadata=token)
    events = stub.ListTaskEvents(ListTaskEventsRequest(task_id=task.id), metadata=token).events
    assert [event.principal for event in events] == ["ann"]


@pytest.mark.parametrize("scheme", ["bearer", "BEARER"])
def test_the_scheme_may_have_any_case(stub: TaskServiceStub, scheme: str) -> None:
    """RFC 9110, 11.1."""
    token = (("authorization", f"{scheme} {RSA.sign(claims())}"),)
    assert stub.GetTaskStats(GetTaskStatsRequest(), metadata=token)


@pytest.mark.parametrize("moved", [{"exp": -20}, {"nbf": 20}, {"iat": 20}], ids=min)
def test_clocks_may_differ_by_half_a_minute(stub: TaskServiceStub, moved: dict[str, int]) -> None:
    times: dict[str, Any] = {name: int(time.time()) + by for name, by in moved.items()}
    assert stub.GetTaskStats(GetTaskStatsRequest(), metadata=bearer(RSA.sign(claims(**times))))


def test_the_service_may_be_one_of_a_tokens_audience(stub: TaskServiceStub) -> None:
    token = bearer(RSA.sign(claims(aud=["other", AUDIENCE])))
    assert stub.GetTaskStats(GetTaskStatsRequest(), metadata=token)


# --- Forged tokens --------------------------------------------------------------------------------

NOW = int(time.time())


def forged(key_server_url: str) -> dict[str, Metadata]:
    good = RSA.sign(claims())
    none = f"{encoded({'alg': 'none', 'typ': 'JWT'})}.{encoded(claims())}."
    tokens = {
        "alg none": none,
        "alg none, with the kid of a key": f"{encoded({'alg': 'none', 'kid': RSA.kid})}"
        f".{encoded(claims())}.",
        "alg none, with a signature": none + good.rpartition(".")[2],
        "HS256 with the public key": signed_with_the_public_key(),
        "HS256 with the kid of a public key": secret_token(claims(), kid=RSA.kid),
        "HS256 with another secret": secret_token(claims(), SECRET_KEY[::-1]),
        "an algorithm not allowed": jwt.encode(claims(), SECRET_KEY * 2, "HS512"),
        "an algorithm not allowed, of a good key": jwt.encode(
            claims(), RSA.private, "RS512", {"kid": RSA.kid}
        ),
        "another key's algorithm": RSA.sign(claims(), kid=EC.kid),
        "an alg that is no text": f"{encoded({'alg': ['RS256'], 'kid': RSA.kid})}"
        f".{encoded(claims())}.{good.rpartition('.')[2]}",
        "another audience": RSA.sign(claims(aud="others")),
        "no audience": RSA.sign(claims(aud=None)),
        "another issuer": RSA.sign(claims(iss="https://other.example")),
        "no issuer": RSA.sign(claims(iss=None)),
        "expired": RSA.sign(claims(exp=NOW - 60)),
        "expired, with the secret key": secret_token(claims(exp=NOW - 60)),
        "without end": RSA.sign(claims(exp=None)),
        "with an end in infinity": RSA.sign(claims(exp=float("inf"))),
        "not yet valid": RSA.sign(claims(nbf=NOW + 3600)),
        "issued in the future": RSA.sign(claims(iat=NOW + 3600)),
        "issued at no time": RSA.sign(claims(iat=None)),
        "with an empty subject": RSA.sign(claims("")),
        "without a subject": RSA.sign({**claims(), "sub": None}),
        "with a subject that is no text": RSA.sign({**claims(), "sub": 7}),
        "with a NUL in its subject": RSA.sign(claims("ann\0")),
        "with half a character in its subject": RSA.sign(claims("ann\ud800")),
        "with a line break in its subject": RSA.sign(claims("ann\nadmin")),
        "with an endless subject": RSA.sign(claims("a" * 201)),
        "with scopes that are none": RSA.sign(claims(scope=7)),
        "with scopes that are an object": RSA.sign(claims(scope={"tasks:read": False})),
        "with scp that is none": RSA.sign(claims(scp=7)),
        "with a life of a hundred years": RSA.sign(claims(exp=NOW + 100 * 365 * 86_400)),
        "with a life of more than a day": RSA.sign(claims(exp=NOW + 600, iat=NOW - 86_400)),
        "an unknown kid": UNKNOWN_KEY.sign(claims()),
        "no kid": jwt.encode(claims(), RSA.private, "RS256"),
        "a kid that is a path": UNKNOWN_KEY.sign(claims(), kid="../../etc/passwd"),
        "jku": UNKNOWN_KEY.sign(claims(), jku=key_server_url),
        "x5u": UNKNOWN_KEY.sign(claims(), x5u=key_server_url),
        "jku, with a known kid": UNKNOWN_KEY.sign(claims(), kid=RSA.kid, jku=key_server_url),
        "jwk": UNKNOWN_KEY.sign(claims(), kid=RSA.kid, jwk=UNKNOWN_KEY.jwk),
        "a critical extension": RSA.sign(claims(), crit=["exp"]),
        "another header": changed(good, 0),
        "another content": changed(good, 1),
        "another signature": changed(good, 2),
        "no signature": good.rpartition(".")[0] + ".",
        "two parts": good.rpartition(".")[0],
        "four parts": good + ".e30",
        "nested lists": f"{encoded(b'[' * 3000)}.{encoded(b'[' * 1500)}.AAAA",
        "larger than is taken": RSA.sign(claims(more="a" * 8192)),
        "100 kB": "a" * 100_000,
        "100 kB, with a good signature": RSA.sign(claims(more="a" * 72_000)),
        "garbage": "garbage",
        "nothing": "",
    }
    metadata = {name: bearer(token) for name, token in tokens.items()}
    return {
        **metadata,
        "no header": (),
        "another scheme": (("authorization", f"Basic {good}"),),
        "no scheme": (("authorization", good),),
        "two headers": bearer(good) + bearer(good),
        "another header's name": (("token", good),),
    }


@pytest.fixture(scope="module")
def forged_tokens(key_server: KeyServer) -> dict[str, Metadata]:
    return forged(key_server.url + "?forged")


@pytest.fixture
def outbound(key_server: KeyServer) -> list[str]:
    """The requests of the service to the issuer during the test."""
    key_server.paths.clear()
    return key_server.paths


@pytest.mark.parametrize("name", forged(""))
def test_a_forged_token_is_refused_as_all_are(
    stub: TaskServiceStub, forged_tokens: dict[str, Metadata], outbound: list[str], name: str
) -> None:
    """One message for all failures; no request to another server, and no statement."""
    request = GetTaskRequest(id="0190a8d0-1e2b-7c3d-8e4f-5a6b7c8d9e0f")
    with counted_statements() as statements, fails(UNAUTHENTICATED, "UNAUTHENTICATED") as failure:
        stub.GetTask(request, metadata=forged_tokens[name])
    assert failure.message == "valid credentials are needed"
    assert (statements, outbound) == ([], [])


def test_a_watch_without_a_token_is_refused(stub: TaskServiceStub) -> None:
    with counted_statements() as statements, fails(UNAUTHENTICATED, "UNAUTHENTICATED"):
        list(stub.WatchTasks(WatchTasksRequest()))
    assert statements == []


@pytest.mark.parametrize("data", [b"\xff", b"\x00" * 300_000], ids=["no message", "too large"])
def test_an_unauthenticated_call_learns_nothing_about_its_request(
    issuers_channel: grpc.Channel, data: bytes
) -> None:
    """AIP-211: the request is validated after authentication."""
    call: Any = issuers_channel.unary_unary("/taskservice.v1.TaskService/CreateTask", None, None)
    with fails(UNAUTHENTICATED, "UNAUTHENTICATED"):
        call(data)


def test_a_token_that_is_good_when_it_comes_is_refused_once_it_has_expired(
    stub: TaskServiceStub,
) -> None:
    """A verified token is cached no longer than it is valid."""
    token = bearer(RSA.sign(claims(exp=int(time.time()) - 28)))
    assert stub.GetTaskStats(GetTaskStatsRequest(), metadata=token)

    def code() -> grpc.StatusCode:
        return stub.GetTaskStats.future(GetTaskStatsRequest(), metadata=token).code()

    wait_until(lambda: code() == UNAUTHENTICATED, "the token is refused")


_parts = st.one_of(
    st.text(alphabet="abcXYZ012-_=", max_size=40),
    st.binary(max_size=40).map(encoded),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["alg", "kid", "typ", "crit", "b64", "sub", "exp", "iat", "aud"]),
                inner | st.sampled_from(["HS256", "RS256", "none", RSA.kid]),
                max_size=5,
            )
        ),
        max_leaves=10,
    ).map(encoded),
)


@given(st.lists(_parts, max_size=5).map(".".join))
def test_no_garbage_gets_in_or_is_an_internal_error(stub: TaskServiceStub, token: str) -> None:
    with fails(UNAUTHENTICATED, "UNAUTHENTICATED"):
        stub.GetTaskStats(GetTaskStatsRequest(), metadata=bearer(token))


def test_one_log_line_stands_for_many_unauthenticated_calls(token_channel: grpc.Channel) -> None:
    """They have no rate limit, so the log limits itself."""
    with capture_logs() as logs:
        for _ in range(100):
            with fails(UNAUTHENTICATED, "UNAUTHENTICATED"):
                TaskServiceStub(token_channel).GetTaskStats(GetTaskStatsRequest())
    lines = [line for line in logs if line.get("reason") == "UNAUTHENTICATED"]
    assert 0 < len(lines) < 50
    assert 0 < sum(line["calls"] for line in lines) <= 101


def test_one_log_line_stands_for_many_calls_of_unknown_methods(
    token_channel: grpc.Channel,
) -> None:
    with capture_logs() as logs:
        for number in range(100):
            method = token_channel.unary_unary(f"/a.Service/Method{number}", bytes, bytes)
            assert method.future(b"").code() is grpc.StatusCode.UNIMPLEMENTED
    lines = [line for line in logs if line.get("code") == "UNIMPLEMENTED"]
    assert 0 < len(lines) < 50
    assert all(line["calls"] for line in lines)
