"""Spans of requests and batches over both transports, as an OpenTelemetry exporter gets them."""

import asyncio
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from service.tracing import NO_TRACER, begin_request
from tests.service.callers import (
    BOTH,
    INTERNAL,
    OK,
    Ask,
    ask_grpc,
    ask_rest,
    ask_stream,
    http_client,
)
from tests.service.conftest import Encode, Entered, FakeRuntime, Serving, until

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
SAMPLED = f"00-{TRACE_ID}-{PARENT_ID}-01"
NOT_SAMPLED = f"00-{TRACE_ID}-{PARENT_ID}-00"
SECRET = "sky"  # a class of the route `segment`
FACTS = {"client.address", *(f"tipserve.{name}" for name in ("model", "sizes", "items", "bytes"))}
STAGES = ["admit", "decode", "queue", "run", "post"]


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def traced(
    serving: Serving, exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> Serving:
    """A whole server whose spans stay in memory."""
    monkeypatch.setattr(
        "service.monitoring.span_export.OtlpExporter", lambda endpoint, metrics: exporter
    )
    return lambda **values: serving(otlp_endpoint="http://127.0.0.1:9", **values)


def named(exporter: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in exporter.get_finished_spans() if span.name == name]


def server_spans(exporter: InMemorySpanExporter) -> list[ReadableSpan]:
    return [span for span in exporter.get_finished_spans() if span.kind.name == "SERVER"]


def times(span: ReadableSpan) -> tuple[int, int]:
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time, span.end_time


def as_text(exporter: InMemorySpanExporter) -> str:
    return "\n".join(span.to_json() for span in exporter.get_finished_spans())


@pytest.mark.parametrize("ask", [ask_rest, ask_grpc, ask_stream])
async def test_a_request_is_one_span_with_its_stages_and_says_who_asked_for_what(
    traced: Serving, exporter: InMemorySpanExporter, encode_image: Encode, tmp_path: Path, ask: Ask
) -> None:
    keys, key = tmp_path / "keys", "a-secret-of-acme"
    keys.write_text(f"{key} name=acme\n")
    headers = {"x-api-key": key, "x-forwarded-for": "203.0.113.7", "traceparent": SAMPLED}
    async with traced(api_keys_file=keys, trusted_proxies="127.0.0.1") as server:
        await ask(server, encode_image(), headers=headers)
    (root,) = server_spans(exporter)
    assert root.context is not None
    assert root.parent is not None
    assert f"{root.context.trace_id:032x}" == TRACE_ID
    assert f"{root.parent.span_id:016x}" == PARENT_ID
    children = [s for s in exporter.get_finished_spans() if s.parent == root.context]
    assert {child.name for child in children} == set(STAGES)
    (began, ended), *inside = [times(span) for span in (root, *children)]
    assert all(began <= start <= end <= ended for start, end in inside)
    facts = dict(root.attributes or {})
    expected = {
        "client.address": "203.0.113.7",
        "tipserve.caller": "acme",
        "tipserve.model": "fake",
        "tipserve.sizes": "40x30",
        "tipserve.items": 1,
    }
    assert facts | expected == facts
    assert int(str(facts["tipserve.bytes"])) >= len(encode_image())
    assert key not in as_text(exporter)


async def test_attributes_follow_the_conventions_and_hold_no_text(
    traced: Serving, exporter: InMemorySpanExporter, encode_image: Encode
) -> None:
    async with traced() as server, http_client(server) as client:
        await ask_rest(server, encode_image(), "segment")
        await ask_grpc(server, encode_image(), "segment")
        await ask_grpc(server, b"secret, and no image")
        await client.get(f"/{SECRET}?q={SECRET}")
        await client.get("/v2/health/live")
    text = as_text(exporter)
    assert "secret" not in text
    assert SECRET not in text
    assert all(span.status.is_ok for span in server_spans(exporter)), "faults of callers"
    rpc = "tipserve.v1.EncoderService"
    spans = {
        span.name: {name: v for name, v in (span.attributes or {}).items() if name not in FACTS}
        for span in server_spans(exporter)
    }
    assert spans == {
        "POST /v1/images:segment": {
            "http.request.method": "POST",
            "http.route": "/v1/images:segment",
            "http.response.status_code": 200,
            "url.scheme": "http",
            "url.path": "/v1/images:segment",
        },
        f"{rpc}/SegmentImages": {
            "rpc.system.name": "grpc",
            "rpc.method": f"{rpc}/SegmentImages",
            "rpc.response.status_code": "OK",
        },
        f"{rpc}/EmbedImages": {
            "rpc.system.name": "grpc",
            "rpc.method": f"{rpc}/EmbedImages",
            "rpc.response.status_code": "INVALID_ARGUMENT",
            "tipserve.error.code": "invalid_image",
        },
        "HTTP": {
            "http.request.method": "_OTHER",
            "http.response.status_code": 404,
            "url.scheme": "http",
            "tipserve.error.code": "route_not_found",
        },
    }
    resource = exporter.get_finished_spans()[0].resource.attributes
    assert resource["service.name"] == "tipserve"


@BOTH
async def test_the_caller_decides_and_else_the_sample_ratio(
    traced: Serving,
    exporter: InMemorySpanExporter,
    encode_image: Encode,
    ask: Ask,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0")
    async with traced() as server:
        await ask(server, encode_image())
        await ask(server, encode_image(), headers={"traceparent": NOT_SAMPLED})
        assert not exporter.get_finished_spans()
        await ask(server, encode_image(), headers={"traceparent": SAMPLED})
    assert len(server_spans(exporter)) == 1


@BOTH
async def test_a_failing_batch_is_an_error_without_its_message(
    traced: Serving,
    exporter: InMemorySpanExporter,
    encode_image: Encode,
    runtime: FakeRuntime,
    ask: Ask,
) -> None:
    async with traced() as server:
        runtime.fault = "raise"
        assert (await ask(server, encode_image())).status in INTERNAL
    (root,) = server_spans(exporter)
    assert not root.status.is_ok
    assert root.status.description is None
    assert (root.attributes or {})["error.type"] == "internal"
    assert not named(exporter, "run")
    assert "secret" not in as_text(exporter)
    assert not any(span.events for span in exporter.get_finished_spans())


@BOTH
async def test_a_caller_who_leaves_the_queue_has_a_queue_span_and_no_run(
    traced: Serving,
    exporter: InMemorySpanExporter,
    encode_image: Encode,
    runtime: FakeRuntime,
    entered: Entered,
    ask: Ask,
) -> None:
    async with traced() as server:
        runtime.gate.clear()
        first = asyncio.ensure_future(ask(server, encode_image()))
        assert await entered()
        assert (await ask(server, encode_image(), timeout_s=0.2)).status not in OK
        await until(lambda: bool(named(exporter, "queue")))
        assert not named(exporter, "run")
        runtime.gate.set()
        assert (await first).status in OK


@pytest.mark.parametrize(
    ("parent", "expected"),
    [(SAMPLED, TRACE_ID), (NOT_SAMPLED, TRACE_ID), ("an image's name", "")],
)
def test_without_a_collector_the_trace_has_only_the_callers_id(parent: str, expected: str) -> None:
    trace = begin_request(NO_TRACER, "http", "GET", {"traceparent": parent}, started=0.0)
    assert trace.trace_id == expected
    assert not trace.is_recording
