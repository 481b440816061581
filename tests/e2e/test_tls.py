"""TLS: clients that are accepted, the findings of a scanner, certificates that are replaced."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from xml.etree import ElementTree

import grpc
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from server.network.health import LIVENESS
from taskservice.v1.task_service_pb2 import GetTaskStatsRequest
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.http2 import connected
from tests.support.programs import debian_program
from tests.support.service import (
    PATIENCE_SECONDS,
    SERVING,
    ServiceProcess,
    health,
    run_command,
    running_service,
    wait_until,
)

StartService = Callable[..., ServiceProcess]
Pair = trustme.LeafCert


class Secret:
    """A folder of certificates as Kubernetes keeps it: what is in it is replaced by one link."""

    def __init__(self, folder: Path, pair: Pair) -> None:
        folder.mkdir()
        self._folder = folder
        self._number = 0
        self.chain, self.key = folder / "tls.crt", folder / "tls.key"
        for file in (self.chain, self.key):
            file.symlink_to(Path("..data") / file.name)
        self.replace(pair)

    @property
    def settings(self) -> dict[str, str]:
        return {"TLS_CERT_FILE": str(self.chain), "TLS_KEY_FILE": str(self.key)}

    def replace(self, pair: Pair) -> None:
        self._number += 1
        version = self._folder / f"..{self._number}"
        version.mkdir()
        pair.cert_chain_pems[0].write_to_path(version / "tls.crt")
        pair.private_key_pem.write_to_path(version / "tls.key")
        link = self._folder / "..data_tmp"
        link.symlink_to(version.name)
        link.replace(self._folder / "..data")


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


def issued(ca: trustme.CA) -> Pair:
    return ca.issue_cert("127.0.0.1")


def serial(pair: Pair) -> int:
    return x509.load_pem_x509_certificate(pair.cert_chain_pems[0].bytes()).serial_number


def serial_shown(service: ServiceProcess) -> int:
    """Return the serial number of the certificate that a new connection receives."""
    pem = ssl.get_server_certificate(("127.0.0.1", service.port))
    return x509.load_pem_x509_certificate(pem.encode()).serial_number


def await_shown(service: ServiceProcess, pair: Pair) -> None:
    def is_shown() -> bool:
        with suppress(ConnectionError):
            return serial_shown(service) == serial(pair)
        return False

    wait_until(is_shown, "the certificate is shown")


@contextmanager
def channel(
    service: ServiceProcess, ca: trustme.CA, own: Pair | None = None
) -> Iterator[grpc.Channel]:
    """A channel with a connection of its own, of a client that trusts the CA."""
    credentials = grpc.ssl_channel_credentials(
        ca.cert_pem.bytes(),
        own.private_key_pem.bytes() if own else None,
        own.cert_chain_pems[0].bytes() if own else None,
    )
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.secure_channel(f"127.0.0.1:{service.port}", credentials, options) as channel:
        yield channel


def call(channel: grpc.Channel) -> None:
    TaskServiceStub(channel).GetTaskStats(GetTaskStatsRequest(), timeout=PATIENCE_SECONDS)


def refusal(channel: grpc.Channel) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as raised:
        call(channel)
    code: grpc.StatusCode = raised.value.code()
    return code


@pytest.fixture(scope="module")
def shared_pair(ca: trustme.CA) -> Pair:
    return issued(ca)


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, shared_database_url: str, shared_pair: Pair
) -> Iterator[ServiceProcess]:
    """A service in production whose callers need no certificate."""
    secret = Secret(tmp_path_factory.mktemp("secrets") / "tls", shared_pair)
    with running_service(
        tmp_path_factory.mktemp("service"),
        (),
        {"server.network.connections.HANDSHAKE_SECONDS": 3},
        ENVIRONMENT="production",
        DATABASE_URL=shared_database_url,
        WORKERS="1",
        HEALTH_PORT="0",
        TLS_TERMINATED_UPSTREAM="false",
        **secret.settings,
    ) as service:
        yield service


def test_calls_are_served_over_tls(service: ServiceProcess, ca: trustme.CA) -> None:
    with channel(service, ca) as encrypted:
        call(encrypted)


def test_plaintext_is_refused(service: ServiceProcess) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{service.port}") as plaintext:
        assert refusal(plaintext) is grpc.StatusCode.UNAVAILABLE


def test_slow_handshakes_delay_no_other_client(service: ServiceProcess, ca: trustme.CA) -> None:
    """300 connections send half of a ClientHello, and are closed."""
    hello_of_512_bytes = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
    with ExitStack() as opened, channel(service, ca) as quick:
        slow = [opened.enter_context(connected(service.port)) for _ in range(300)]
        for connection in slow:
            connection.sendall(hello_of_512_bytes)
        call(quick)
        assert {connection.recv(1) for connection in slow} == {b""}


def test_probes_stay_in_plaintext(service: ServiceProcess) -> None:
    """Kubernetes probes without TLS."""
    with grpc.insecure_channel(f"127.0.0.1:{service.health_port}") as probe:
        assert health(probe, LIVENESS) == SERVING


@pytest.fixture(scope="module")
def scan(service: ServiceProcess) -> ElementTree.Element:
    """What sslscan says of the service."""
    program = debian_program("sslscan", "sslscan")
    command = [program, "--show-sigs", "--xml=-", f"127.0.0.1:{service.port}"]
    scanned = subprocess.run(command, capture_output=True, check=True, timeout=PATIENCE_SECONDS)
    found = ElementTree.fromstring(scanned.stdout).find("ssltest")  # noqa: S314 - sslscan's own
    assert found is not None
    return found


def test_scan_finds_tls_1_2_and_newer_only(scan: ElementTree.Element) -> None:
    enabled = {p.get("version") for p in scan.iter("protocol") if p.get("enabled") == "1"}
    assert enabled == {"1.2", "1.3"}


def test_scan_finds_strong_ciphers_only(scan: ElementTree.Element) -> None:
    """Those that RFC 9325 recommends: with forward secrecy, and authenticated encryption."""
    ciphers = [cipher.attrib for cipher in scan.iter("cipher")]
    assert len(ciphers) >= 4
    assert [
        cipher
        for cipher in ciphers
        if int(cipher["bits"]) < 128
        or not cipher["cipher"].startswith(("TLS_", "ECDHE-"))
        or not ("GCM" in cipher["cipher"] or "CHACHA20" in cipher["cipher"])
    ] == []


def test_scan_finds_no_known_weakness(scan: ElementTree.Element) -> None:
    assert [h.attrib for h in scan.iter("heartbleed") if h.get("vulnerable") != "0"] == []
    assert [r.attrib for r in scan.iter("renegotiation") if r.get("supported") != "0"] == []
    assert [c.attrib for c in scan.iter("compression") if c.get("supported") != "0"] == []
    assert [g.attrib for g in scan.iter("group") if int(g.get("bits", "0")) < 112] == []


def test_failed_handshakes_write_nothing_that_is_no_json(
    service: ServiceProcess, scan: ElementTree.Element
) -> None:
    """gRPC's core has a word for each, and a scanner makes hundreds."""
    assert [line for line in service.lines if not line.startswith("{")] == []


# --- Certificates of clients ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def strict_service(
    tmp_path_factory: pytest.TempPathFactory,
    shared_database_url: str,
    shared_pair: Pair,
    client_ca: trustme.CA,
) -> Iterator[ServiceProcess]:
    """A service whose callers need a certificate of the clients' CA."""
    folder = tmp_path_factory.mktemp("secrets")
    client_ca.cert_pem.write_to_path(folder / "ca.crt")
    with running_service(
        tmp_path_factory.mktemp("service"),
        ENVIRONMENT="staging",
        DATABASE_URL=shared_database_url,
        WORKERS="1",
        TLS_CLIENT_CA_FILE=str(folder / "ca.crt"),
        **Secret(folder / "tls", shared_pair).settings,
    ) as service:
        yield service


@pytest.fixture(scope="module")
def client_ca() -> trustme.CA:
    return trustme.CA()


def test_client_with_a_certificate_of_the_ca_is_served(
    strict_service: ServiceProcess, ca: trustme.CA, client_ca: trustme.CA
) -> None:
    with channel(strict_service, ca, own=client_ca.issue_cert("client.example")) as known:
        call(known)


def test_client_without_a_certificate_is_refused(
    strict_service: ServiceProcess, ca: trustme.CA
) -> None:
    with channel(strict_service, ca) as anonymous:
        assert refusal(anonymous) is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("of", ["another CA", "the server's CA"])
def test_client_with_a_certificate_of_another_ca_is_refused(
    strict_service: ServiceProcess, ca: trustme.CA, of: str
) -> None:
    issuer = trustme.CA() if of == "another CA" else ca
    with channel(strict_service, ca, own=issuer.issue_cert("client.example")) as unknown:
        assert refusal(unknown) is grpc.StatusCode.UNAVAILABLE


# --- Certificates that are replaced ---------------------------------------------------------------


def in_place(secret: Secret, pair: Pair) -> None:
    """One file after the other, each written where it is: for a moment they do not fit."""
    pair.cert_chain_pems[0].write_to_path(secret.chain)
    pair.private_key_pem.write_to_path(secret.key)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_no_call_fails_while_certificates_are_replaced(
    start_service: StartService,
    own_database_url: str,
    tmp_path: Path,
    ca: trustme.CA,
    workers: str,
) -> None:
    """Neither on a connection that stays, nor on the many that are made."""
    secret = Secret(tmp_path / "tls", issued(ca))
    service = start_service(
        ENVIRONMENT="staging", DATABASE_URL=own_database_url, WORKERS=workers, **secret.settings
    )
    failures: list[grpc.RpcError] = []
    over = threading.Event()

    def call_all_the_time(*, stay: bool) -> None:
        while not over.is_set():
            with channel(service, ca) as connection:
                try:
                    call(connection)
                    while stay and not over.is_set():
                        call(connection)
                except grpc.RpcError as error:
                    failures.append(error)

    callers = [threading.Thread(target=call_all_the_time, kwargs={"stay": n < 2}) for n in range(4)]
    for caller in callers:
        caller.start()
    try:
        for number in range(20):
            pair = issued(ca)
            (in_place if number % 2 else Secret.replace)(secret, pair)
            await_shown(service, pair)
    finally:
        over.set()
        for caller in callers:
            caller.join()
    assert failures == [], service.log
    # No worker has crashed and been replaced.
    assert len(service.events("ready")) == int(workers), service.log


def test_certificate_without_its_key_waits_for_it(
    start_service: StartService, own_database_url: str, tmp_path: Path, ca: trustme.CA
) -> None:
    """However long that takes; it is logged once."""
    old, new = issued(ca), issued(ca)
    secret = Secret(tmp_path / "tls", old)
    service = start_service(
        ENVIRONMENT="staging", DATABASE_URL=own_database_url, WORKERS="1", **secret.settings
    )
    await_shown(service, old)
    new.cert_chain_pems[0].write_to_path(secret.chain)
    assert [serial_shown(service) for _ in range(5)] == [serial(old)] * 5
    new.private_key_pem.write_to_path(secret.key)
    assert serial_shown(service) == serial(new)
    service.await_log("certificates renewed")
    assert [event["why"] for event in service.events("certificates not renewed")] == [
        "TLS_KEY_FILE: is not the key of the certificate in TLS_CERT_FILE"
    ]


def test_worker_that_starts_while_files_are_broken_has_what_was_good(
    start_service: StartService, own_database_url: str, tmp_path: Path, ca: trustme.CA
) -> None:
    """A worker that fails then must not end the service."""
    pair = issued(ca)
    secret = Secret(tmp_path / "tls", pair)
    service = start_service(
        ENVIRONMENT="staging", DATABASE_URL=own_database_url, WORKERS="2", **secret.settings
    )
    wait_until(lambda: len(service.events("ready")) == 2, "both workers are ready")
    before = service.workers()
    secret.key.write_text("broken")
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(service.events("ready")) == 4, "their replacements are ready")
    assert serial_shown(service) == serial(pair)


def test_a_ca_of_clients_is_replaced_by_way_of_both(
    start_service: StartService, own_database_url: str, tmp_path: Path, ca: trustme.CA
) -> None:
    secret, old, new = Secret(tmp_path / "tls", issued(ca)), trustme.CA(), trustme.CA()
    bundle = tmp_path / "ca.crt"
    old.cert_pem.write_to_path(bundle)
    service = start_service(
        ENVIRONMENT="staging",
        DATABASE_URL=own_database_url,
        WORKERS="1",
        TLS_CLIENT_CA_FILE=str(bundle),
        **secret.settings,
    )
    with channel(service, ca, own=new.issue_cert("client.example")) as too_early:
        assert refusal(too_early) is grpc.StatusCode.UNAVAILABLE
    new.cert_pem.write_to_path(bundle, append=True)
    for authority in (old, new):
        with channel(service, ca, own=authority.issue_cert("client.example")) as known:
            call(known)
    new.cert_pem.write_to_path(bundle)
    with channel(service, ca, own=old.issue_cert("client.example")) as too_late:
        assert refusal(too_late) is grpc.StatusCode.UNAVAILABLE
    with channel(service, ca, own=new.issue_cert("client.example")) as known:
        call(known)


# --- Files that cannot be used --------------------------------------------------------------------


@pytest.fixture
def start_with(tmp_path: Path, ca: trustme.CA) -> Callable[..., tuple[int, str]]:
    """Starts a service with these contents of its files; returns its exit code and its words."""
    pair = issued(ca)
    good = {
        "TLS_CERT_FILE": pair.cert_chain_pems[0].bytes(),
        "TLS_KEY_FILE": pair.private_key_pem.bytes(),
        "TLS_CLIENT_CA_FILE": ca.cert_pem.bytes(),
    }

    def start(**contents: bytes | None) -> tuple[int, str]:
        files = {setting: tmp_path / setting for setting in good}
        for setting, content in (good | contents).items():
            if content is not None:
                files[setting].write_bytes(content)
        settings = {setting: str(file) for setting, file in files.items()}
        ran = run_command(tmp_path, "serve", program=(), **settings)
        return ran.returncode, ran.stderr

    return start


@pytest.mark.parametrize("setting", ["TLS_CERT_FILE", "TLS_KEY_FILE", "TLS_CLIENT_CA_FILE"])
def test_file_that_is_missing_refuses_the_start(
    start_with: Callable[..., tuple[int, str]], setting: str
) -> None:
    assert start_with(**{setting: None}) == (
        2,
        f"{setting}: cannot be read: No such file or directory\n",
    )


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("TLS_CERT_FILE", "holds no certificates in PEM"),
        ("TLS_KEY_FILE", "holds no private key in PEM without a password"),
        ("TLS_CLIENT_CA_FILE", "holds no certificates in PEM"),
    ],
)
def test_file_that_holds_something_else_refuses_the_start(
    start_with: Callable[..., tuple[int, str]], setting: str, problem: str
) -> None:
    """And is not quoted: it may hold a key under another name."""
    assert start_with(**{setting: b"something else"}) == (2, f"{setting}: {problem}\n")


def test_key_of_another_certificate_refuses_the_start(
    start_with: Callable[..., tuple[int, str]], ca: trustme.CA
) -> None:
    assert start_with(TLS_KEY_FILE=issued(ca).private_key_pem.bytes()) == (
        2,
        "TLS_KEY_FILE: is not the key of the certificate in TLS_CERT_FILE\n",
    )


def test_key_with_a_password_refuses_the_start(
    start_with: Callable[..., tuple[int, str]], ca: trustme.CA
) -> None:
    key = load_pem_private_key(issued(ca).private_key_pem.bytes(), None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"a password")
    )
    assert start_with(TLS_KEY_FILE=key) == (
        2,
        "TLS_KEY_FILE: holds no private key in PEM without a password\n",
    )
