"""A watch by REST, as lines of JSON and as server-sent events: its changes and its end."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import jwt
import pytest

from tests.gateway.conftest import CreateTask
from tests.support.credentials import SECRET_KEY
from tests.support.rest import Gateway, running_gateway
from tests.support.service import PATIENCE_SECONDS, ServiceProcess, running_service

EVENTS = "text/event-stream"
# For which the service accepts a token that has expired.
LEEWAY_SECONDS = 30
ACCEPTED = [({}, "application/x-ndjson"), ({"accept": f"{EVENTS}, */*"}, EVENTS)]


class Watch:
    """An open watch, closed at the end of a `with` block."""

    def __init__(self, gateway: Gateway, query: str = "", **headers: str) -> None:
        self._connection = HTTPConnection("127.0.0.1", gateway.port, timeout=PATIENCE_SECONDS)
        self._connection.request("GET", f"/tasks:watch{query}", headers=headers)
        self.response: HTTPResponse = self._connection.getresponse()

    def messages(self) -> Iterator[dict[str, Any]]:
        """The messages that are no bookmarks, until the watch ends."""
        while line := self.response.readline():
            if text := line.removeprefix(b"data: ").strip():
                message: dict[str, Any] = json.loads(text)
                if message["type"] != "TYPE_BOOKMARK":
                    yield message

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.response.close()
        self._connection.close()


@pytest.mark.parametrize(("headers", "media"), ACCEPTED)
def test_changes_arrive_as_they_happen(
    gateway: Gateway, task: CreateTask, headers: dict[str, str], media: str
) -> None:
    query = "?filter=title:watched&send_initial_tasks=true"
    with Watch(gateway, query, **headers) as watch:
        assert watch.response.status == 200
        assert watch.response.headers["content-type"] == media
        messages = watch.messages()
        created = task(title=f"watched {media}")
        found = next(message for message in messages if message["task"]["id"] == created["id"])
        assert (found["type"], found["task"]) == ("TYPE_ADDED", created)
        gateway.call(f"DELETE /tasks/{created['id']}")
        assert next(messages)["type"] == "TYPE_DELETED"


@pytest.mark.parametrize(("headers", "media"), ACCEPTED)
def test_a_watch_that_cannot_begin_is_an_error(
    gateway: Gateway, headers: dict[str, str], media: str
) -> None:
    for query, reason in (("?resume_token=x", "INVALID_REQUEST"), ("?filter=(", "INVALID_REQUEST")):
        answer = gateway.call(f"GET /tasks:watch{query}", headers=headers)
        assert (answer.status, answer.reason) == (400, reason), media
        assert answer.headers["content-type"] == "application/json"


def test_the_last_message_says_that_the_token_expired(
    tmp_path: Path, own_database_url: str
) -> None:
    """With the code at which a client resumes with new credentials."""
    settings = {"DATABASE_URL": own_database_url, "AUTH_MODE": "jwt", "SECRET_KEY": SECRET_KEY}
    with (
        running_service(tmp_path / "service", **settings) as service,
        running_gateway(tmp_path / "gateway", service) as gateway,
    ):
        token = _expiring_token()
        with Watch(gateway, "?send_initial_tasks=true", authorization=f"Bearer {token}") as watch:
            (last,) = watch.messages()
    assert (last["type"], last["status"]["code"]) == ("TYPE_ENDED", 16)
    assert last["status"]["details"][0]["reason"] == "CREDENTIALS_EXPIRED"


def _expiring_token() -> str:
    """Make a token that the service accepts for a few seconds more."""
    now = int(time.time())
    claims = {"sub": "ann", "scope": "tasks:read", "iat": now - 60, "exp": now - LEEWAY_SECONDS + 3}
    return jwt.encode(claims, SECRET_KEY, "HS256")


def test_the_last_message_says_why_a_watch_ends(
    gateway: Gateway, task: CreateTask, service: ServiceProcess
) -> None:
    """The last test of the module: it ends the service."""
    created = task()
    with ExitStack() as stack:
        watches = [
            stack.enter_context(Watch(gateway, "?send_initial_tasks=true", **headers))
            for headers, _ in ACCEPTED
        ]
        received = [watch.messages() for watch in watches]
        for messages in received:
            assert any(message["task"]["id"] == created["id"] for message in messages)
        service.signal(signal.SIGTERM)
        for messages in received:
            last = list(messages)[-1]
            assert (last["type"], last["status"]["code"]) == ("TYPE_ENDED", 14)
            kinds = {detail["@type"].rsplit(".", 1)[-1] for detail in last["status"]["details"]}
            assert {"ErrorInfo", "RetryInfo"} <= kinds
