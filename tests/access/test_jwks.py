"""An issuer's keys: which of a set are taken, and that they follow the set as it changes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
from jwt.algorithms import RSAAlgorithm
from structlog.testing import capture_logs

from server.access.jwks import public_keys
from server.network.health import LIVENESS, READINESS
from server.settings import Settings
from storage.database import Database
from taskservice.v1.task_service_pb2 import GetTaskStatsRequest
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.credentials import (
    AUDIENCE,
    ISSUER,
    KeyServer,
    SigningKey,
    bearer,
    claims,
    key_set,
    running_key_server,
)
from tests.support.errors import fails
from tests.support.service import NOT_SERVING, SERVING, await_ready, health, wait_until
from tests.support.workers import running_worker

UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED

OLD, NEW = SigningKey("RS256", "old"), SigningKey("ES256", "new")
WEAK = SigningKey("RS256", "weak", bits=1024)
ALGORITHMS = {"RS256", "ES256", "EdDSA"}

Publish = Callable[[bytes], None]


# --- Which keys are taken -------------------------------------------------------------------------


def taken(document: bytes) -> set[tuple[str, str | None]]:
    """The keys of a set that are taken, by algorithm and kid."""
    keys, _ = public_keys(document, ALGORITHMS)
    return set(keys)


@pytest.mark.parametrize(
    ("algorithm", "names"),
    [("RS256", ["RS256"]), ("ES256", ["ES256"]), ("EdDSA", ["EdDSA", "Ed25519"])],
)
def test_a_public_key_is_taken_by_its_algorithm_and_kid(algorithm: str, names: list[str]) -> None:
    key = SigningKey(algorithm, "a kid")
    assert taken(key_set(key)) == {(name, "a kid") for name in names}


@pytest.mark.parametrize("left_out", ["alg", "use"])
def test_what_a_key_need_not_say_may_be_left_out(left_out: str) -> None:
    jwk = {name: value for name, value in NEW.jwk.items() if name != left_out}
    document = json.dumps({"keys": [jwk]}).encode()
    assert taken(document) == {("ES256", "new")}


def private_jwk() -> Any:
    return RSAAlgorithm.to_jwk(OLD.private, as_dict=True)


@pytest.mark.parametrize(
    "jwk",
    [
        pytest.param({"kty": "oct", "k": "c2VjcmV0", "kid": "x"}, id="a secret"),
        pytest.param({"kty": "oct", "k": "c2VjcmV0", "kid": "x", "alg": "RS256"}, id="as RSA"),
        pytest.param({**private_jwk(), "kid": "x"}, id="a private key"),
        pytest.param({**OLD.jwk, "kid": "x", "use": "enc"}, id="for encryption"),
        pytest.param({**OLD.jwk, "kid": "x", "alg": "RS512"}, id="an algorithm not allowed"),
        pytest.param({**OLD.jwk, "kid": "x", "alg": "HS256"}, id="an RSA key as a secret"),
        pytest.param({**OLD.jwk, "kid": None}, id="no kid"),
        pytest.param({**OLD.jwk, "kid": ["x"]}, id="a kid that is no text"),
        pytest.param({**WEAK.jwk, "kid": "x"}, id="an RSA key too short"),
        pytest.param({"kty": "RSA", "kid": "x"}, id="half a key"),
        pytest.param({**OLD.jwk, "kid": "x", "alg": ["RS256"]}, id="no algorithm"),
        pytest.param({**OLD.jwk, "kid": "x", "alg": "Ed25519"}, id="another kind"),
        pytest.param("a key", id="no object"),
    ],
)
def test_any_other_key_is_left_out(jwk: Any) -> None:
    """Those beside it are taken all the same: a set may have keys for others."""
    document = json.dumps({"keys": [jwk, NEW.jwk]}).encode()
    assert taken(document) == {("ES256", "new")}


NONSENSE = [b"", b"[]", b"{}", b'{"keys": 1}', b"\xff", b"[" * 100_000, b"<html>"]


# --- Following a set ------------------------------------------------------------------------------


class Source:
    """A set of keys in a file or at a URL."""

    def __init__(self, settings: dict[str, Any], publish: Publish) -> None:
        self.settings = settings
        self.publish = publish


@pytest.fixture
def key_server() -> Iterator[KeyServer]:
    with running_key_server() as server:
        yield server


@pytest.fixture(params=["file", "URL"])
def source(request: pytest.FixtureRequest, tmp_path: Path, key_server: KeyServer) -> Source:
    if request.param == "URL":
        return Source(
            {"jwks_url": key_server.url}, lambda keys: setattr(key_server, "document", keys)
        )
    path = tmp_path / "jwks.json"

    def publish(document: bytes) -> None:
        """As Kubernetes does: another file in the place of the old one."""
        path.with_suffix(".new").write_bytes(document)
        os.replace(path.with_suffix(".new"), path)

    publish(b"")
    return Source({"jwks_url": path.as_uri()}, publish)


@pytest.fixture
def serve(
    settings: Settings, database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Starts a service that reads its keys again and again."""
    monkeypatch.setattr("server.access.jwks.REFRESH_SECONDS", 0.02)

    @contextmanager
    def serve(**changes: object) -> Iterator[grpc.Channel]:
        own: dict[str, object] = {
            "auth_mode": "jwt",
            "algorithm": "RS256,ES256",
            "jwt_issuer": ISSUER,
            "jwt_audience": AUDIENCE,
            **changes,
        }
        with running_worker(settings.model_copy(update=own), database_url) as channel:
            yield channel

    return serve


def code(channel: grpc.Channel, key: SigningKey) -> grpc.StatusCode:
    """How a call with a token of this key ends."""
    token = bearer(key.sign(claims()))
    stub = TaskServiceStub(channel)
    return stub.GetTaskStats.future(GetTaskStatsRequest(), metadata=token).code()


def is_taken(channel: grpc.Channel, key: SigningKey) -> bool:
    return code(channel, key) is grpc.StatusCode.OK


def test_until_there_are_keys_calls_are_to_come_again(
    serve: Callable[..., Any], source: Source
) -> None:
    with serve(**source.settings) as channel:
        with fails(grpc.StatusCode.UNAVAILABLE, "KEYS_UNAVAILABLE"):
            TaskServiceStub(channel).GetTaskStats(
                GetTaskStatsRequest(), metadata=bearer(OLD.sign(claims()))
            )
        source.publish(key_set(OLD))
        wait_until(lambda: is_taken(channel, OLD), "the key is taken")


def test_until_there_are_keys_the_service_is_not_ready(
    serve: Callable[..., Any], key_server: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For long enough that it would have become ready otherwise."""
    monkeypatch.setattr("server.jobs.readiness.INTERVAL_SECONDS", 0.01)
    with serve(jwks_url=key_server.url) as channel:
        wait_until(lambda: len(key_server.paths) > 50, "the issuer was asked again and again")
        assert (health(channel, LIVENESS), health(channel, READINESS)) == (SERVING, NOT_SERVING)
        key_server.document = key_set(OLD)
        await_ready(channel)


def test_the_secret_keys_tokens_need_not_wait_for_the_others(
    serve: Callable[..., Any], settings: Settings, key_server: KeyServer
) -> None:
    with serve(algorithm="HS256,RS256", jwks_url=key_server.url) as channel:
        token = jwt.encode(claims(), settings.key(), "HS256")
        TaskServiceStub(channel).GetTaskStats(GetTaskStatsRequest(), metadata=bearer(token))


def test_a_key_that_is_added_is_taken(serve: Callable[..., Any], source: Source) -> None:
    source.publish(key_set(OLD))
    with serve(**source.settings) as channel:
        await_ready(channel)
        assert code(channel, NEW) is UNAUTHENTICATED
        source.publish(key_set(OLD, NEW))
        wait_until(lambda: is_taken(channel, NEW), "the new key is taken")
        assert is_taken(channel, OLD)


def test_a_key_that_is_removed_verifies_nothing_any_more(
    serve: Callable[..., Any], source: Source
) -> None:
    """Not even the very token that was good a moment before."""
    source.publish(key_set(OLD, NEW))
    token = bearer(OLD.sign(claims()))
    with serve(**source.settings) as channel:
        await_ready(channel)
        stub = TaskServiceStub(channel)
        stub.GetTaskStats(GetTaskStatsRequest(), metadata=token)
        source.publish(key_set(NEW))

        def refused() -> bool:
            call = stub.GetTaskStats.future(GetTaskStatsRequest(), metadata=token)
            return call.code() is UNAUTHENTICATED

        wait_until(refused, "the token is refused")


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(b'{"keys": []}', id="no keys"),
        pytest.param(b'{"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "x"}]}', id="a secret"),
    ],
)
def test_when_the_last_key_is_removed_none_is_good(
    serve: Callable[..., Any], source: Source, document: bytes
) -> None:
    source.publish(key_set(OLD))
    with serve(**source.settings) as channel:
        await_ready(channel)
        assert is_taken(channel, OLD)
        source.publish(document)
        wait_until(lambda: code(channel, OLD) is UNAUTHENTICATED, "the key is refused")


@pytest.mark.parametrize("part", ["headers", "document"])
def test_an_issuer_that_never_comes_to_an_end_is_left_alone(
    serve: Callable[..., Any],
    key_server: KeyServer,
    part: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It sends something again and again, so that no single read takes too long."""
    monkeypatch.setattr("server.access.jwks._DEADLINE_SECONDS", 0.2)
    key_server.document, key_server.endless = key_set(OLD), part
    with serve(jwks_url=key_server.url) as channel, capture_logs() as logs:
        why = "the set took longer than 0.2 s"
        wait_until(lambda: why in [line["why"] for line in problems(logs)], "a line in the log")
        key_server.endless = ""
        wait_until(lambda: is_taken(channel, OLD), "the set is read after all")


@pytest.mark.parametrize("nonsense", NONSENSE, ids=range(len(NONSENSE)))
def test_known_keys_stay_when_the_set_becomes_nonsense(
    serve: Callable[..., Any], key_server: KeyServer, nonsense: bytes
) -> None:
    key_server.document = key_set(OLD)
    with serve(jwks_url=key_server.url) as channel:
        await_ready(channel)
        key_server.document = nonsense
        await_request(key_server)
        assert is_taken(channel, OLD)
        key_server.document = key_set(NEW)
        wait_until(lambda: is_taken(channel, NEW), "the set is read again")


def test_known_keys_stay_when_the_url_is_away(
    serve: Callable[..., Any], key_server: KeyServer
) -> None:
    key_server.document = key_set(OLD)
    with serve(jwks_url=key_server.url) as channel:
        await_ready(channel)
        key_server.status = 503
        await_request(key_server)
        assert is_taken(channel, OLD)
        key_server.status = 200


def test_known_keys_stay_when_the_file_is_away(serve: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_bytes(key_set(OLD))
    with serve(jwks_url=path.as_uri()) as channel, capture_logs() as logs:
        await_ready(channel)
        path.unlink()
        wait_until(lambda: problems(logs), "it is missed")
        assert is_taken(channel, OLD)


def test_a_set_is_not_looked_for_elsewhere(
    serve: Callable[..., Any], key_server: KeyServer
) -> None:
    """A redirect is not followed: its target is not the configured issuer."""
    with running_key_server(key_set(NEW)) as elsewhere:
        key_server.document = key_set(OLD)
        with serve(jwks_url=key_server.url) as channel:
            await_ready(channel)
            key_server.status, key_server.location = 302, elsewhere.url
            await_request(key_server)
            assert (is_taken(channel, NEW), elsewhere.paths) == (False, [])
            key_server.status = 200


def test_a_set_has_a_size_that_can_be_read(
    serve: Callable[..., Any], key_server: KeyServer
) -> None:
    key_server.document = key_set(OLD)
    with serve(jwks_url=key_server.url) as channel:
        await_ready(channel)
        key_server.document = key_set(NEW) + b" " * 1024 * 1024
        await_request(key_server)
        assert (is_taken(channel, NEW), is_taken(channel, OLD)) == (False, True)


def problems(logs: list[Any]) -> list[Any]:
    return [line for line in logs if line["event"].startswith("keys cannot be read")]


def await_request(server: KeyServer) -> None:
    """Wait until the present keys were read: the second request from now ends before the third."""
    count = len(server.paths) + 3
    wait_until(lambda: len(server.paths) >= count, "the set was read")
