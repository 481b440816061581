"""Read OpenTelemetry's standard variables.

An unknown value is ignored with a warning, as OpenTelemetry's specification requires: telemetry
must not prevent a service from starting.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from server.settings import Settings

_DEFAULT_SAMPLER = "parentbased_traceidratio"
_SAMPLERS = {
    f"{parent}{root}"
    for parent in ("", "parentbased_")
    for root in ("always_on", "always_off", "traceidratio")
}


def traces_endpoint(settings: Settings) -> str | None:
    """Return the collector that spans are exported to, over gRPC; None for no export.

    OTEL_EXPORTER_ENDPOINT precedes the standard variables.
    """
    if not settings.otel_enabled:
        return None
    default = "http://localhost:4317" if settings.environment == "production" else ""
    given = settings.otel_exporter_endpoint or _variable("TRACES_ENDPOINT") or _variable("ENDPOINT")
    return given or default or None


def sampler_name() -> str:
    """Return OTEL_TRACES_SAMPLER, or its default if it names a sampler that is not supported."""
    name = _standard("OTEL_TRACES_SAMPLER").lower()
    return name if name in _SAMPLERS else _DEFAULT_SAMPLER


def sampling_ratio(settings: Settings) -> float:
    """Return the share of traces that a ratio sampler takes."""
    given = _ratio()
    if given is not None:
        return given
    return 1 if settings.environment == "development" else 0.1


def ignored(settings: Settings) -> Iterator[str]:
    """Yield a line for each variable whose value is ignored."""
    if not settings.otel_enabled:
        return
    name, used = _standard("OTEL_TRACES_SAMPLER"), sampler_name()
    if name.lower() not in {"", used}:
        yield f"OTEL_TRACES_SAMPLER: {name!r} is not supported, {used} is used"
    if _standard("OTEL_TRACES_SAMPLER_ARG") and _ratio() is None:
        ratio = sampling_ratio(settings)
        yield f"OTEL_TRACES_SAMPLER_ARG: it is not a ratio between 0 and 1, {ratio} is used"
    protocol = _variable("TRACES_PROTOCOL") or _variable("PROTOCOL")
    if protocol.lower() not in {"", "grpc"}:
        yield f"OTLP: the protocol {protocol!r} is not supported, grpc is used"


def _ratio() -> float | None:
    try:
        ratio = float(_standard("OTEL_TRACES_SAMPLER_ARG"))
    except ValueError:
        return None
    return ratio if 0 <= ratio <= 1 else None


def _variable(name: str) -> str:
    return _standard(f"OTEL_EXPORTER_OTLP_{name}")


def _standard(name: str) -> str:
    return os.environ.get(name, "").strip()
