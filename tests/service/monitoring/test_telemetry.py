"""Both transports begin and end a call in one way, with logs and traces as the settings say."""

import io
import logging
import sys
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.exposition import choose_encoder

from service.call import current_call
from service.monitoring.log import LogQueue
from service.monitoring.metrics import Metrics
from service.monitoring.span_export import tracer_provider
from service.monitoring.telemetry import Telemetry, build_telemetry

LIMIT_S = 20.0
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
MakeSettings = Callable[..., Any]


def exposed(metrics: Metrics) -> str:
    return choose_encoder("application/openmetrics-text")[0](metrics.registry).decode()


@pytest.mark.parametrize("is_quiet", [False, True])
def test_a_call_is_counted_and_if_not_quiet_traced(metrics: Metrics, is_quiet: bool) -> None:
    exporter = InMemorySpanExporter()
    provider = tracer_provider(exporter)
    telemetry = Telemetry(metrics, tracer=provider.get_tracer("test"))
    carried = {"x-request-id": "me", "traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01"}

    def answer() -> None:
        call = telemetry.begin("http", "POST", carried, 5.0)
        assert current_call.get() is call
        assert (call.request_id, call.trace.trace_id) == ("me", TRACE_ID)
        assert call.deadline == pytest.approx(call.started + 5.0)
        call.model = "tiny"
        call.wait("run", 0.25)
        for first_s, last_s in ((0.25, 0.75), (0.5, 1.0), (0.5, 0.75)):  # of several images
            call.record("decode", call.started + first_s, call.started + last_s)
        call.error = "internal"
        telemetry.end(call, "POST /x", 500, is_fault=True, is_quiet=is_quiet)

    copy_context().run(answer)
    provider.shutdown()
    sample = metrics.registry.get_sample_value
    labels = {"protocol": "http", "method": "POST /x", "code": "500"}
    assert sample("tipserve_requests_total", labels) == 1
    assert sample("tipserve_stage_duration_seconds_sum", {"stage": "run"}) == 0.25
    model = {"model": "tiny"}
    of_model = {**model, "protocol": "http"}
    assert sample("tipserve_model_requests_total", {**of_model, "code": "500"}) == 1
    assert sample("tipserve_model_request_duration_seconds_count", of_model) == 1
    assert sample("tipserve_model_stage_duration_seconds_sum", {**model, "stage": "run"}) == 0.25
    assert f'method="POST /x"}} 1.0 # {{trace_id="{TRACE_ID}"}}' in exposed(metrics)
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert spans.keys() == (set() if is_quiet else {"POST /x", "decode"})
    total_s = sample("tipserve_request_duration_seconds_sum", {"method": "POST /x"})
    for name, span in spans.items():
        expected_s = 0.75 if name == "decode" else total_s
        assert span.start_time is not None
        assert span.end_time is not None
        assert expected_s == pytest.approx(1e-9 * (span.end_time - span.start_time), abs=1e-6)
        error = None if name == "decode" else "internal"
        assert (span.attributes or {}).get("error.type") == error


@pytest.mark.parametrize(
    ("values", "logged"),
    [
        ({}, ["200", "422", "500"]),
        ({"log_level": "DEBUG"}, ["200", "422", "500"]),
        ({"log_level": "WARNING"}, ["500"]),
        ({"access_log_ratio": 0.0}, ["500"]),
    ],
)
def test_faults_of_the_server_are_logged_with_any_settings(
    metrics: Metrics, make_settings: MakeSettings, values: dict[str, Any], logged: list[str]
) -> None:
    stream = io.StringIO()
    log = LogQueue(stream, "text")
    telemetry = build_telemetry(make_settings(**values), metrics, log)
    logging.getLogger().addHandler(log)

    def answer() -> None:
        for code in (200, 422, 500):
            call = telemetry.begin("http", "GET", {}, 1.0)
            telemetry.end(call, "GET /x", code, is_fault=code == 500)
        quiet = telemetry.begin("http", "GET", {}, 1.0)
        telemetry.end(quiet, "GET /v2/health/ready", 503, is_fault=True, is_quiet=True)

    copy_context().run(answer)
    logging.getLogger().removeHandler(log)
    log.close(LIMIT_S)
    codes = [line.split("code=")[1].split()[0] for line in stream.getvalue().splitlines()]
    assert codes == logged


def test_an_endpoint_needs_the_sdk_and_is_an_address(
    metrics: Metrics, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "service.monitoring.span_export", raising=False)
    monkeypatch.delattr("service.monitoring.span_export", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(ImportError, match=r"\.\[otel\]"):
        build_telemetry(make_settings(otlp_endpoint="http://127.0.0.1:9"), metrics, None)
    for endpoint in ("collector:4318", "ftp://x", "http://user:pass@collector", "http://a b"):
        with pytest.raises(ValueError, match="otlp_endpoint"):
            make_settings(otlp_endpoint=endpoint)
