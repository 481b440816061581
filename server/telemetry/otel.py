"""OpenTelemetry's standard variables: what they say here, and which of them are ignored.

A value that is not known is ignored with a warning, as OpenTelemetry's specification wants it:
telemetry must not keep a service from starting.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Literal, NamedTuple

from server.settings import Settings

_DEFAULT_SAMPLER = "parentbased_traceidratio"
_SAMPLERS = {
    f"{parent}{root}"
    for parent in ("", "parentbased_")
    for root in ("always_on", "always_off", "traceidratio")
}

Protocol = Literal["grpc", "http/protobuf"]
Signal = Literal["traces", "metrics"]

# Where a collector takes JSON over HTTP it takes protobuf, too.
_PROTOCOLS: dict[str, Protocol] = {
    "": "grpc",
    "grpc": "grpc",
    "http/protobuf": "http/protobuf",
    "http/json": "http/protobuf",
}
_PORTS: dict[Protocol, int] = {"grpc": 4317, "http/protobuf": 4318}


class Target(NamedTuple):
    """Where a signal is pushed to, and how."""

    protocol: Protocol
    endpoint: str


def target(settings: Settings, signal: Signal) -> Target | None:
    """Returns where spans or metrics are pushed to; None for nowhere.

    OTEL_EXPORTER_ENDPOINT goes before the standard variables. Over HTTP the signal's path is added,
    but not to an endpoint that is for this signal only.
    """
    if not settings.otel_enabled:
        return None
    protocol = _protocol(signal)[1]
    port = _PORTS[protocol]
    default = f"http://localhost:{port}" if settings.environment == "production" else ""
    own = "" if settings.otel_exporter_endpoint else _variable(f"{signal.upper()}_ENDPOINT")
    base = settings.otel_exporter_endpoint or _variable("ENDPOINT") or default
    if not (own or base):
        return None
    path = f"/v1/{signal}" if protocol == "http/protobuf" else ""
    return Target(protocol, own or (base.rstrip("/") + path if path else base))


def sampler_name() -> str:
    """Return OTEL_TRACES_SAMPLER, or its default if it names a sampler that is not supported."""
    name = _standard("OTEL_TRACES_SAMPLER").lower()
    return name if name in _SAMPLERS else _DEFAULT_SAMPLER


def sampling_ratio(settings: Settings) -> float:
    """Returns the share of traces that a sampler by ratio takes."""
    given = _ratio()
    if given is not None:
        return given
    return 1 if settings.environment == "development" else 0.1


def ignored(settings: Settings) -> Iterator[str]:
    """Yields a line for each variable whose value is ignored."""
    if not settings.otel_enabled:
        return
    name, used = _standard("OTEL_TRACES_SAMPLER"), sampler_name()
    if name.lower() not in {"", used}:
        yield f"OTEL_TRACES_SAMPLER: {name!r} is not supported, {used} is used"
    if _standard("OTEL_TRACES_SAMPLER_ARG") and _ratio() is None:
        ratio = sampling_ratio(settings)
        yield f"OTEL_TRACES_SAMPLER_ARG: it is not a ratio between 0 and 1, {ratio} is used"
    signals: tuple[Signal, ...] = ("traces", "metrics")
    for signal in signals:
        given, protocol = _protocol(signal)
        if given not in {"", protocol}:
            yield f"OTLP for {signal}: the protocol {given!r} is not supported, {protocol} is used"


def _ratio() -> float | None:
    try:
        ratio = float(_standard("OTEL_TRACES_SAMPLER_ARG"))
    except ValueError:
        return None
    return ratio if 0 <= ratio <= 1 else None


def _protocol(signal: Signal) -> tuple[str, Protocol]:
    """The protocol that is asked for, and the one that is used."""
    given = (_variable(f"{signal.upper()}_PROTOCOL") or _variable("PROTOCOL")).lower()
    return given, _PROTOCOLS.get(given, "grpc")


def _variable(name: str) -> str:
    return _standard(f"OTEL_EXPORTER_OTLP_{name}")


def _standard(name: str) -> str:
    return os.environ.get(name, "").strip()
