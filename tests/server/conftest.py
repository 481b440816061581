"""Fixtures for tests of callers: a service that wants tokens, and stubs of those who have one."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import jwt
import pytest
from pydantic import SecretStr

from server.settings import Settings
from storage.database import Database
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.conftest import running_worker
from tests.credentials import SECRET_KEY, authorised, claims
from tests.server.access import StubOf


@pytest.fixture(scope="session")
def token_settings(settings: Settings) -> Settings:
    changes = {"auth_mode": "jwt", "secret_key": SecretStr(SECRET_KEY)}
    return settings.model_copy(update=changes)


@pytest.fixture(scope="session")
def token_channel(token_settings: Settings, database_url: str) -> Iterator[grpc.Channel]:
    """A channel to a service that wants tokens signed with SECRET_KEY."""
    with running_worker(token_settings, database_url) as channel:
        yield channel


@pytest.fixture
def stub_of(token_channel: grpc.Channel, database: Database) -> StubOf:
    """The stub of a caller with this name and these scopes: words, or whatever the claim is.

    At the service that wants tokens, unless another is given with its key.
    """

    def stub_of(
        name: str,
        *scopes: str,
        at: tuple[grpc.Channel, str] = (token_channel, SECRET_KEY),
        **claim: object,
    ) -> TaskServiceStub:
        channel, key = at
        content = {"iss": None, "aud": None, "scope": " ".join(scopes), **claim}
        return TaskServiceStub(
            authorised(channel, jwt.encode(claims(name, **content), key, "HS256"))
        )

    return stub_of
