"""Read the certificates of TLS, again when their files have been replaced.

While the files are not valid together, the certificates before stay in use.
"""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import structlog
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from server.settings import Settings, SettingsError

log = structlog.get_logger()

_CHAIN, _KEY, _CLIENT_CA = "TLS_CERT_FILE", "TLS_KEY_FILE", "TLS_CLIENT_CA_FILE"


class Identity(NamedTuple):
    """The certificates and the key of the server, and the CA of its clients; in PEM."""

    chain: bytes
    key: bytes
    client_ca: bytes | None = None


class Certificates:
    """The content of the files that the settings name."""

    def __init__(self, chain: Path, key: Path, client_ca: Path | None) -> None:
        """Read the files. Raises: SettingsError."""
        self._files = {_CHAIN: chain, _KEY: key}
        if client_ca:
            self._files[_CLIENT_CA] = client_ca
        self._problem = ""
        self.identity = self._read()
        _check(self.identity)

    def renewed(self) -> Identity | None:
        """Read the files again; return their content if it is new and valid."""
        try:
            identity = self._read()
            if identity == self.identity:
                return None
            _check(identity)
        except SettingsError as error:
            self._report(str(error))
            return None
        self.identity, self._problem = identity, ""
        log.info("certificates renewed")
        return identity

    def _report(self, problem: str) -> None:
        if problem != self._problem:  # Each new connection finds the same one.
            log.error("certificates not renewed", why=problem)
        self._problem = problem

    def _read(self) -> Identity:
        contents = []
        for setting, path in self._files.items():
            try:
                contents.append(path.read_bytes())
            except OSError as error:
                raise SettingsError([f"{setting}: cannot be read: {error.strerror}"]) from None
        return Identity(*contents)


# Read once, before the fork: a worker that starts while the files are invalid has the ones before.
_opened = cache(Certificates)


def certificates(settings: Settings) -> Certificates | None:
    """Return the certificates that the settings name, None for plaintext. Raises: SettingsError."""
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return None
    return _opened(settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file)


def _check(identity: Identity) -> None:
    leaf = _certificates(_CHAIN, identity.chain)[0]
    if _private_key(identity.key).public_key() != leaf.public_key():
        raise SettingsError([f"{_KEY}: is not the key of the certificate in {_CHAIN}"])
    if identity.client_ca is not None:
        _certificates(_CLIENT_CA, identity.client_ca)


def _certificates(setting: str, pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise SettingsError([f"{setting}: holds no certificates in PEM"]) from None


def _private_key(pem: bytes) -> PrivateKeyTypes:
    try:
        return load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it needs a password.
        raise SettingsError([f"{_KEY}: holds no private key in PEM without a password"]) from None
