"""How often metrics are pushed."""

from __future__ import annotations

import pytest

from server.telemetry.metric_push import _interval_seconds


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("200", 0.2), ("", 60), ("often", 60), pytest.param("0", 0.001, id="never without a pause")],
)
def test_the_interval_is_the_standard_variable_and_never_stops_the_push(
    monkeypatch: pytest.MonkeyPatch, given: str, seconds: float
) -> None:
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", given)
    assert _interval_seconds() == seconds
