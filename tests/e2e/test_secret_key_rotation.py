"""The three steps by which SECRET_KEY is replaced while instances of two steps serve together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise

import grpc
import jwt
import pytest
from pydantic import SecretStr

from server.settings import Settings
from taskservice.v1.task_service_pb2 import ListTasksRequest
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.credentials import authorised, claims
from tests.support.databases import made_database
from tests.support.watching import Watch, create
from tests.support.workers import running_worker

OLD, NEW = "the old key of the service: 0123456", "the new key of the service: 0123456"

# SECRET_KEY and SECRET_KEY_PREVIOUS before, in and after the rotation, as docs/security.md has it.
STEPS = {"before": (OLD, None), "first": (OLD, NEW), "second": (NEW, OLD), "after": (NEW, None)}
TOGETHER = list(pairwise(STEPS))

Channels = dict[str, grpc.Channel]


@pytest.fixture(scope="module")
def channels(settings: Settings, postgres_url: str) -> Iterator[Channels]:
    """A channel to an instance of each step; all have one database."""
    with ExitStack() as opened:
        url = opened.enter_context(made_database(postgres_url))

        def channel_of(key: str, previous: str | None) -> grpc.Channel:
            keys = {
                "auth_mode": "jwt",
                "secret_key": SecretStr(key),
                "secret_key_previous": SecretStr(previous) if previous else None,
            }
            worker = running_worker(settings.model_copy(update=keys), url)
            return opened.enter_context(worker)

        channels = {step: channel_of(*keys) for step, keys in STEPS.items()}
        create(stub_of(channels["before"], OLD), *"abcd")
        yield channels


def stub_of(channel: grpc.Channel, key: str) -> TaskServiceStub:
    """The stub of a client whose token is signed with the key."""
    content = {"iss": None, "aud": None, "scope": "tasks:read tasks:write"}
    return TaskServiceStub(authorised(channel, jwt.encode(claims("ann", **content), key, "HS256")))


def pages_go_on(made_by: TaskServiceStub, at: TaskServiceStub) -> bool:
    token = made_by.ListTasks(ListTasksRequest(page_size=2)).next_page_token
    return len(at.ListTasks(ListTasksRequest(page_size=2, page_token=token)).tasks) == 2


def watches_go_on(made_by: TaskServiceStub, at: TaskServiceStub) -> bool:
    watch = Watch(made_by)
    token = watch.bookmark()
    watch.cancel()
    (task,) = create(at, "meanwhile")
    watch = Watch(at, resume_token=token)
    change = watch.change()
    watch.cancel()
    return change.task == task


@pytest.mark.parametrize("steps", TOGETHER, ids="-".join)
def test_instances_of_two_steps_accept_the_tokens_of_each_other(
    channels: Channels, steps: tuple[str, str]
) -> None:
    """A client reaches one instance, then the other, with its own token, a page's, a watch's."""
    one, other = steps
    for made_by, at in ((one, other), (other, one)):
        maker, reader = (stub_of(channels[step], STEPS[made_by][0]) for step in (made_by, at))
        assert pages_go_on(maker, reader)
        assert watches_go_on(maker, reader)


def test_the_old_key_is_worthless_after_the_rotation(channels: Channels) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        pages_go_on(stub_of(channels["before"], OLD), stub_of(channels["after"], OLD))
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
