"""The certificate that the service shows, its key, and the CA of those who may connect.

They are files that others replace while the service runs: one after the other, or all at once by a
link, as Kubernetes does for a secret. What they hold is taken as a whole or not at all: a file half
written, or a key that is not the certificate's yet, leaves what was good before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeVar

import structlog
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from server.settings import Settings, SettingsError

log = structlog.get_logger()

T = TypeVar("T")

_CHAIN, _KEY, _CLIENT_CA = "TLS_CERT_FILE", "TLS_KEY_FILE", "TLS_CLIENT_CA_FILE"


class Identity(NamedTuple):
    """What a TLS server shows, and whom it asks for certificates; in PEM."""

    chain: bytes
    key: bytes
    client_ca: bytes | None


class Certificates:
    """What is in the files that the settings name."""

    def __init__(self, chain: Path, key: Path, client_ca: Path | None) -> None:
        """Reads the files. Raises: SettingsError."""
        self._files = {_CHAIN: chain, _KEY: key}
        if client_ca:
            self._files[_CLIENT_CA] = client_ca
        self._turn = threading.Lock()
        self._problem = ""
        self._versions = self._of_each(_version)
        self.identity = self._read()

    def renewed(self) -> Identity | None:
        """What the files hold, if that is another thing by now, and good. Any thread may ask."""
        with self._turn:
            try:
                # Before they are read: what is written while they are is found the next time.
                versions = self._of_each(_version)
                if versions == self._versions:
                    return None
                self.identity = self._read()
            except SettingsError as error:
                self._complain(str(error))
                return None
            self._versions, self._problem = versions, ""
            log.info("certificates renewed")
            return self.identity

    def _complain(self, problem: str) -> None:
        """Once: every connection that is made finds the same."""
        if problem != self._problem:
            log.error("certificates not renewed", why=problem)
        self._problem = problem

    def _read(self) -> Identity:
        chain, key, *client_ca = self._of_each(Path.read_bytes)
        leaf = _certificates(_CHAIN, chain)[0]
        if _private_key(key).public_key() != leaf.public_key():
            raise SettingsError([f"{_KEY}: is not the key of the certificate in {_CHAIN}"])
        for ca in client_ca:
            _certificates(_CLIENT_CA, ca)
        return Identity(chain, key, client_ca[0] if client_ca else None)

    def _of_each(self, take: Callable[[Path], T]) -> list[T]:
        taken = []
        for setting, path in self._files.items():
            try:
                taken.append(take(path))
            except OSError as error:
                raise SettingsError([f"{setting}: cannot be read: {error.strerror}"]) from None
        return taken


def certificates(settings: Settings) -> Certificates | None:
    """Those that the settings name; None when they name none. Raises: SettingsError."""
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return None
    return _opened(settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file)


@cache
def _opened(chain: Path, key: Path, client_ca: Path | None) -> Certificates:
    """Once, before the fork: a worker that starts while the files are broken has what was good."""
    return Certificates(chain, key, client_ca)


def _version(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _certificates(setting: str, pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise SettingsError([f"{setting}: holds no certificates in PEM"]) from None


def _private_key(pem: bytes) -> PrivateKeyTypes:
    try:
        return load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: a password is asked for.
        raise SettingsError([f"{_KEY}: holds no private key in PEM without a password"]) from None
