"""Settings decide which requests are logged and whether anything is traced."""

import io
import sys
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

import pytest

from service.monitoring.log import LineWriter
from service.monitoring.metrics import Metrics
from service.monitoring.otel_tracing import OtelTracer
from service.monitoring.tracing_setup import build_telemetry, build_tracer
from service.tracing import NoTracer

LIMIT_S = 20.0
MakeSettings = Callable[..., Any]


@pytest.mark.parametrize(
    ("values", "logged"),
    [
        ({}, ["200", "422", "500"]),
        ({"log_level": "DEBUG"}, ["200", "422", "500"]),
        ({"log_level": "WARNING"}, ["500"]),
        ({"access_log_ratio": 0.0}, ["500"]),
    ],
)
def test_faults_of_ours_are_logged_whatever_is_set(
    metrics: Metrics, make_settings: MakeSettings, values: dict[str, Any], logged: list[str]
) -> None:
    stream = io.StringIO()
    lines = LineWriter(stream)
    telemetry = build_telemetry(make_settings(log_format="text", **values), metrics, lines)

    def answer() -> None:
        for code in (200, 422, 500):
            call = telemetry.begin("http", "GET", {}, 1.0)
            telemetry.end(call, "GET /x", code, is_fault=code == 500)
        quiet = telemetry.begin("http", "GET", {}, 1.0)
        telemetry.end(quiet, "GET /v2/health/ready", 503, is_fault=True, is_quiet=True)

    copy_context().run(answer)  # or the last call would stay the current one of other tests
    assert lines.close(LIMIT_S)
    codes = [line.split("code=")[1].split()[0] for line in stream.getvalue().splitlines()]
    assert codes == logged


def test_lost_lines_are_told_by_the_metrics(metrics: Metrics, make_settings: MakeSettings) -> None:
    stream = io.StringIO()
    stream.close()
    lines = LineWriter(stream)
    build_telemetry(make_settings(), metrics, lines)
    lines.put("lost\n")
    assert lines.close(LIMIT_S)
    assert metrics.registry.get_sample_value("tipserve_log_lines_dropped_total") == 1


def test_tracing_is_off_unless_it_is_set(metrics: Metrics, make_settings: MakeSettings) -> None:
    assert isinstance(build_tracer(make_settings(), metrics), NoTracer)
    tracer = build_tracer(make_settings(otlp_endpoint="http://127.0.0.1:9"), metrics)
    assert isinstance(tracer, OtelTracer)
    tracer.close(LIMIT_S)


def test_without_its_library_the_error_says_what_to_install(
    metrics: Metrics, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "service.monitoring.otel_tracing", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(ImportError, match=r"tipserve\[otel\]"):
        build_tracer(make_settings(otlp_endpoint="http://127.0.0.1:9"), metrics)


@pytest.mark.parametrize(
    "endpoint", ["collector:4318", "ftp://collector", "http://user:pass@collector", "http://a b"]
)
def test_an_endpoint_that_cannot_be_is_an_error(make_settings: MakeSettings, endpoint: str) -> None:
    with pytest.raises(ValueError, match="otlp_endpoint"):
        make_settings(otlp_endpoint=endpoint)
