"""What both clients open a channel with: credentials, options and the published service config."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import TypeAlias

import grpc

Pem: TypeAlias = bytes | str | Path
"""A PEM text, or the path of a file with one."""

Options: TypeAlias = Sequence[tuple[str, str | int]]

_SCHEME = re.compile(r"(?:ipv4|ipv6|dns):(?://[^/]*/)?")
_VERSION = metadata.version("task-service-client")


def _service_config() -> str:
    """Read the published config without its timeouts, which would bound those of the caller."""
    config = json.loads(resources.files(__package__).joinpath("service_config.json").read_text())
    for methods in config["methodConfig"]:
        methods.pop("timeout", None)
    return json.dumps(config)


_OPTIONS: Options = [
    ("grpc.service_config", _service_config()),
    ("grpc.primary_user_agent", f"task-service-client/{_VERSION}"),
    # A lost connection is detected within half a minute, and another attempted soon.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 5_000),
]


@dataclass(frozen=True, slots=True)
class Tls:
    """Certificates: `ca` verifies the service, `certificate` and `key` name the client (mTLS)."""

    ca: Pem | None = None
    """The certificates that verify the service; when None, those of gRPC."""
    certificate: Pem | None = None
    key: Pem | None = None
    server_name: str | None = None
    """The name in the certificate of the service, if it is not that of the target."""

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files. Raises: OSError."""
        return grpc.ssl_channel_credentials(_pem(self.ca), _pem(self.key), _pem(self.certificate))


def credentials_for(target: str, tls: Tls | bool | None) -> grpc.ChannelCredentials | None:
    """Return the credentials of a channel, None for plaintext.

    By default only a connection within the machine is plaintext.
    """
    if tls is None:
        tls = not _is_local(target)
    if tls is True:
        tls = Tls()
    return tls.credentials() if tls else None


def options_for(tls: Tls | bool | None, own: Options) -> Options:
    """Return the options of a channel; those of the application win."""
    name = tls.server_name if isinstance(tls, Tls) else None
    named = [("grpc.ssl_target_name_override", name)] if name else []
    return [*_OPTIONS, *named, *own]


def _pem(source: Pem | None) -> bytes | None:
    if source is None or isinstance(source, bytes):
        return source
    if isinstance(source, str) and source.lstrip().startswith("-----BEGIN"):
        return source.encode()
    return Path(source).read_bytes()


def _is_local(target: str) -> bool:
    """Return whether the target is a socket of this machine."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    return all(map(_is_loopback, _SCHEME.sub("", target, count=1).split(",")))


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]") or address
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
