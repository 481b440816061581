"""Tokens and the keys behind them, from the command line to a rotation under load."""

from __future__ import annotations

import json
import operator
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
from cryptography import x509

from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    CreateTaskRequest,
    GetTaskStatsRequest,
    PurgeTasksRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.credentials import (
    AUDIENCE,
    ISSUER,
    SECRET_KEY,
    Certificate,
    SigningKey,
    authorised,
    bearer,
    claims,
    key_set,
    running_key_server,
)
from tests.support.service import ServiceProcess, await_ready, run_command, wait_until

StartService = Callable[..., ServiceProcess]

UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
DENIED = grpc.StatusCode.PERMISSION_DENIED

_WORKERS = 2
_CALLERS = 4
_ROTATIONS = 4
_CALLS_BETWEEN = 15


# --- The token command ----------------------------------------------------------------------------


def mint(folder: Path, *arguments: str, **settings: Any) -> str:
    """The token that the command prints."""
    ran = run_command(folder, "token", *arguments, AUTH_MODE="jwt", **settings)
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


def test_the_service_takes_a_token_that_was_made_beside_it(
    start_service: StartService, tmp_path: Path
) -> None:
    """With nothing set but AUTH_MODE: both have the key that development keeps."""
    folder = tmp_path / "service"
    service = start_service(folder, ENVIRONMENT="development", AUTH_MODE="jwt", SECRET_KEY="")
    channel = service.channel()
    with pytest.raises(grpc.RpcError) as raised:
        TaskServiceStub(channel).GetTaskStats(GetTaskStatsRequest())
    assert raised.value.code() == UNAUTHENTICATED
    stub = TaskServiceStub(authorised(channel, mint(folder, "--sub", "ann").strip()))
    task = stub.CreateTask(CreateTaskRequest(task=Task(title="a task")))
    assert task.created_by == "ann"
    with pytest.raises(grpc.RpcError) as raised:
        stub.PurgeTasks(PurgeTasksRequest(filter="*"))
    assert raised.value.code() == DENIED


def test_a_token_stands_alone_on_its_line_and_has_the_given_claims(tmp_path: Path) -> None:
    arguments = ("--sub", "ann", "--scope", "tasks:read", "tasks:admin", "--minutes", "5")
    names = {"JWT_ISSUER": ISSUER, "JWT_AUDIENCE": AUDIENCE}
    (line,) = mint(tmp_path, *arguments, SECRET_KEY=SECRET_KEY, **names).splitlines()
    said = jwt.decode(line, SECRET_KEY, ["HS256"], audience=AUDIENCE)
    assert (said["sub"], said["scope"], said["iss"]) == ("ann", "tasks:read tasks:admin", ISSUER)
    assert said["exp"] - said["iat"] == 5 * 60


def test_a_token_is_good_for_as_long_as_the_settings_say(tmp_path: Path) -> None:
    token = mint(
        tmp_path,
        *("--sub", "ann"),
        SECRET_KEY=SECRET_KEY,
        ACCESS_TOKEN_EXPIRE_MINUTES="7",  # noqa: S106
    ).strip()
    said = jwt.decode(token, SECRET_KEY, ["HS256"])
    assert said["exp"] - said["iat"] == 7 * 60


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {
                "ENVIRONMENT": "production",
                "DATABASE_URL": "postgresql://h/x",
                "TLS_TERMINATED_UPSTREAM": "true",
            },
            "ENVIRONMENT: no tokens are made in production",
        ),
        (
            {
                "ALGORITHM": "RS256",
                "JWKS_URL": "https://x/",
                "JWT_ISSUER": "x",
                "JWT_AUDIENCE": "x",
            },
            "ALGORITHM: must have HS256 for tokens made here",
        ),
    ],
    ids=["production", "no HS256"],
)
def test_no_token_is_made_where_none_should_be(
    tmp_path: Path, settings: dict[str, str], line: str
) -> None:
    options: dict[str, Any] = {"AUTH_MODE": "jwt", "SECRET_KEY": SECRET_KEY, **settings}
    ran = run_command(tmp_path, "token", "--sub", "ann", **options)
    assert (ran.returncode, ran.stdout, ran.stderr) == (2, "", line + "\n")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--sub", "ann", "--scope", "tasks:all"),
        ("--sub", "ann", "--minutes", "x"),
        ("--sub", "ann", "--minutes", "1441"),
        ("--sub", "ann", "--minutes", "0"),
        ("--sub", " ann"),
        ("--sub", "Anonymous"),
    ],
)
def test_a_token_that_no_service_would_accept_is_not_made(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    ran = run_command(tmp_path, "token", *arguments)
    assert (ran.returncode, ran.stdout) == (2, "")


# --- Certificates ---------------------------------------------------------------------------------


def test_a_certificate_names_a_principal_with_configured_scopes(
    start_service: StartService, tmp_path: Path
) -> None:
    name = "spiffe://example/billing"
    authority = Certificate("an authority")
    server = Certificate("localhost", x509.DNSName("localhost"), issuer=authority)
    client = Certificate("", x509.UniformResourceIdentifier(name), issuer=authority)
    files = {"TLS_CERT_FILE": server.pem, "TLS_KEY_FILE": server.key_pem}
    files["TLS_CLIENT_CA_FILE"] = authority.pem
    for setting, content in files.items():
        (tmp_path / setting).write_bytes(content)
    service = start_service(
        AUTH_MODE="mtls",
        MTLS_SCOPES=json.dumps({f"uri:{name}": ["tasks:read", "tasks:write"]}),
        **{setting: str(tmp_path / setting) for setting in files},
    )
    credentials = grpc.ssl_channel_credentials(authority.pem, client.key_pem, client.pem)
    options = [("grpc.ssl_target_name_override", "localhost")]
    with grpc.secure_channel(f"127.0.0.1:{service.port}", credentials, options) as channel:
        stub = TaskServiceStub(channel)
        task = stub.CreateTask(CreateTaskRequest(task=Task(title="a task")), wait_for_ready=True)
        assert task.created_by == f"uri:{name}"
        with pytest.raises(grpc.RpcError) as raised:
            stub.PurgeTasks(PurgeTasksRequest(filter="deleted_at:*"))
        assert raised.value.code() == DENIED


def test_a_name_of_certificates_without_its_kind_ends_the_start(tmp_path: Path) -> None:
    """The line says how it is written."""
    ran = run_command(tmp_path, "serve", MTLS_SCOPES='{"spiffe://example/billing": []}')
    assert (ran.returncode, ran.stderr) == (
        2,
        'MTLS_SCOPES: "spiffe://example/billing" has no kind; '
        'write "uri:spiffe://example/billing"\n',
    )


# --- What is written down -------------------------------------------------------------------------


def test_log_and_spans_have_the_principal_and_no_part_of_its_token(
    start_service: StartService, own_database_url: str
) -> None:
    """Also at the level that says most, and of tokens that are refused."""
    service = start_service(
        ENVIRONMENT="staging",
        DATABASE_URL=own_database_url,
        WORKERS="1",
        AUTH_MODE="jwt",
        SECRET_KEY=SECRET_KEY,
        LOG_LEVEL="DEBUG",  # Spans are logged, too.
        OTEL_TRACES_SAMPLER="always_on",
    )
    stub = service.stub()
    content = claims("ann", iss=None, aud=None)
    good = jwt.encode(content, SECRET_KEY, "HS256")
    bad = jwt.encode({**content, "jti": "forged"}, SECRET_KEY[::-1], "HS256")
    stub.GetTaskStats(GetTaskStatsRequest(), metadata=bearer(good))
    with pytest.raises(grpc.RpcError):
        stub.GetTaskStats(GetTaskStatsRequest(), metadata=bearer(bad))
    wait_until(lambda: len(service.events("call")) == 2, "two calls in the log")
    first, second = service.events("call")
    assert (first["principal"], second["principal"]) == ("ann", "anonymous")
    assert second["reason"] == "UNAUTHENTICATED"
    assert [event["why"] for event in service.events("token refused")] == ["InvalidSignatureError"]
    wait_until(lambda: service.log.count('"name": "taskservice.v1.') == 2, "two spans")
    assert service.log.count('"enduser.id": "ann"') == 1
    parts = [part for token in (good, bad) for part in token.split(".")]
    assert [part for part in (*parts, SECRET_KEY) if part in service.log] == []


# --- Rotation -------------------------------------------------------------------------------------


class Load:
    """Clients that call without a pause, each time with the current token."""

    def __init__(self, service: ServiceProcess) -> None:
        self.token = ""
        self.failures: list[str] = []
        self._done = [0] * _CALLERS
        self._ended = threading.Event()
        self._stubs = [service.stub() for _ in range(_CALLERS)]

    def run(self, meanwhile: Callable[[], None]) -> None:
        with ThreadPoolExecutor(_CALLERS) as pool:
            for number in range(_CALLERS):
                pool.submit(self._call_on, number)
            try:
                meanwhile()
            finally:
                self._ended.set()

    def use(self, token: str) -> None:
        """Returns when no caller uses another one any more, and each has called some times."""
        self.token = token
        self.go_on()

    def go_on(self) -> None:
        until = [done + _CALLS_BETWEEN for done in self._done]
        wait_until(
            lambda: all(map(operator.ge, self._done, until)), "every caller has called some times"
        )

    def _call_on(self, number: int) -> None:
        while not self._ended.is_set():
            metadata = bearer(self.token)
            try:
                self._stubs[number].GetTaskStats(GetTaskStatsRequest(), metadata=metadata)
            except grpc.RpcError as error:
                self.failures.append(str(error))
            self._done[number] += 1


@pytest.mark.parametrize("source", ["file", "URL"])
def test_keys_are_rotated_under_load_without_a_failed_call(
    start_service: StartService, own_database_url: str, tmp_path: Path, source: str
) -> None:
    """As an issuer does it: the new key is published, known everywhere, then signs; the old one
    goes when nothing that it signed is in use."""
    keys = [SigningKey(("RS256", "ES256", "EdDSA")[n % 3], f"key {n}") for n in range(_ROTATIONS)]
    path = tmp_path / "jwks.json"
    with running_key_server() as server:

        def publish(*published: SigningKey) -> None:
            server.document = key_set(*published)
            path.with_suffix(".new").write_bytes(server.document)
            path.with_suffix(".new").replace(path)

        publish(keys[0])
        service = start_service(
            constants={"server.access.jwks.REFRESH_SECONDS": 0.05},
            ENVIRONMENT="staging",
            DATABASE_URL=own_database_url,
            WORKERS=str(_WORKERS),
            AUTH_MODE="jwt",
            ALGORITHM="RS256,ES256,EdDSA",
            JWT_ISSUER=ISSUER,
            JWT_AUDIENCE=AUDIENCE,
            JWKS_URL=path.as_uri() if source == "file" else server.url,
        )
        load = Load(service)
        load.token = keys[0].sign(claims())

        def await_known(*published: SigningKey) -> None:
            kids = sorted(key.kid for key in published)
            wait_until(
                lambda: (
                    [event["kids"] for event in service.events("new keys")].count(kids) == _WORKERS
                ),
                f"all workers know {kids}",
            )

        def rotate() -> None:
            for old, new in pairwise(keys):
                publish(old, new)
                await_known(old, new)
                load.use(new.sign(claims()))
                publish(new)
                await_known(new)
                load.go_on()

        await_known(keys[0])
        await_ready(service.channel())
        load.run(rotate)
    assert load.failures == []
