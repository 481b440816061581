"""Decide which calls are traced, by OpenTelemetry's variables; an unknown value is a warning."""

import os
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

from opentelemetry import trace
from opentelemetry.context import Context, attach
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    Decision,
    ParentBased,
    Sampler,
    TraceIdRatioBased,
)
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from server.settings import Settings

Metadata = Sequence[tuple[str, str | bytes]]

# W3C Trace Context only: the propagator of baggage logs what clients send if it is malformed.
PROPAGATOR = TraceContextTextMapPropagator()
_FIELDS = PROPAGATOR.fields

_ROOTS = "always_on", "always_off", "traceidratio"
_SAMPLERS = {*_ROOTS, *(f"parentbased_{root}" for root in _ROOTS)}
_DEFAULT = "parentbased_traceidratio"

_ids = RandomIdGenerator()

# The trace id of the sampling decision, for the span that follows.
_chosen_trace_id: ContextVar[int | None] = ContextVar("chosen_trace_id", default=None)


def sampler(settings: Settings) -> Sampler:
    """Build the sampler that OTEL_TRACES_SAMPLER names."""
    if not settings.otel_enabled:
        return ALWAYS_OFF
    given, ratio = _variable("TRACES_SAMPLER").lower(), _ratio()
    name = given if given in _SAMPLERS else _DEFAULT
    if ratio is None:
        ratio = 1.0 if settings.environment == "development" else 0.1
    root: Sampler = {"always_on": ALWAYS_ON, "always_off": ALWAYS_OFF}.get(
        name.removeprefix("parentbased_"), TraceIdRatioBased(ratio)
    )
    return ParentBased(root) if name.startswith("parentbased_") else root


def ignored_values(settings: Settings) -> Iterator[str]:
    """Yield a line for each standard variable whose value is ignored."""
    if not settings.otel_enabled:
        return
    if (name := _variable("TRACES_SAMPLER")).lower() not in {"", *_SAMPLERS}:
        yield f"OTEL_TRACES_SAMPLER: {name!r} is not supported, {_DEFAULT} is used"
    if _variable("TRACES_SAMPLER_ARG") and _ratio() is None:
        yield "OTEL_TRACES_SAMPLER_ARG: it is not a ratio between 0 and 1, the default is used"
    protocol = _variable("EXPORTER_OTLP_TRACES_PROTOCOL") or _variable("EXPORTER_OTLP_PROTOCOL")
    if protocol.lower() not in {"", "grpc"}:
        yield f"OTLP: the protocol {protocol!r} is not supported, grpc is used"


def _ratio() -> float | None:
    try:
        ratio = float(_variable("TRACES_SAMPLER_ARG"))
    except ValueError:
        return None
    return ratio if 0 <= ratio <= 1 else None


def _variable(name: str) -> str:
    return os.environ.get(f"OTEL_{name}", "").strip()


def head_sampled(sampler: Sampler, name: str, metadata: Metadata) -> bool:
    """Decide whether a call is sampled, before anything is recorded.

    A sampled call's span gets the trace id of the decision; for another, its trace context becomes
    current. grpcio gives each call a context of its own.
    """
    carrier = {key: value for key, value in metadata if key in _FIELDS}
    context = PROPAGATOR.extract(carrier) if carrier else Context()
    caller = trace.get_current_span(context).get_span_context()
    trace_id = caller.trace_id if caller.is_valid else _ids.generate_trace_id()
    decision = sampler.should_sample(context, trace_id, name, SpanKind.SERVER).decision
    if decision is Decision.RECORD_AND_SAMPLE:
        _chosen_trace_id.set(trace_id)
        return True
    unsampled = SpanContext(
        trace_id, _ids.generate_span_id(), False, TraceFlags.get_default(), caller.trace_state
    )
    attach(trace.set_span_in_context(NonRecordingSpan(unsampled), context))
    return False


class ChosenIds(RandomIdGenerator):
    """Generate the trace id of the sampling decision, if there is one."""

    def generate_trace_id(self) -> int:
        return _chosen_trace_id.get() or super().generate_trace_id()
