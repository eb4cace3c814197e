"""Spans and log lines of the real program, with working and broken collectors."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from model.package import ModelPackage
from tipserve_client import InvalidRequest

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Program

RunService = Callable[..., Any]
LIMIT_S = 60.0


@dataclass
class Collector:
    """Fake OpenTelemetry collector: accepts OTLP over HTTP and keeps the spans."""

    endpoint: str
    spans: list[Any] = field(default_factory=list)
    resource: dict[str, str] = field(default_factory=dict)

    def take(self, body: bytes) -> None:
        """Keep the spans of one export."""
        for resource_spans in ExportTraceServiceRequest.FromString(body).resource_spans:
            attributes = resource_spans.resource.attributes
            self.resource |= {a.key: a.value.string_value for a in attributes}
            for scope_spans in resource_spans.scope_spans:
                self.spans += scope_spans.spans

    def named(self, name: str) -> list[Any]:
        """Spans with this name."""
        return [span for span in self.spans if span.name == name]


@pytest.fixture
def collector() -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/otlp/v1/traces":
                taken.take(body)
            self.send_response(200 if self.path == "/otlp/v1/traces" else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        taken = Collector(f"http://127.0.0.1:{server.server_port}/otlp")
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield taken
        server.shutdown()
        thread.join(LIMIT_S)


def test_a_collector_has_all_spans_once_the_server_has_drained(
    run_service: RunService, collector: Collector, photo: Callable[..., bytes]
) -> None:
    fields = {"images": [photo(), photo(1)], "classes": ["dog"]}
    with run_service(f"--otlp-endpoint={collector.endpoint}/") as service:
        service.over_rest("segment", fields)
        service.over_grpc("segment", fields)
    rest, rpc = "POST /v1/images:segment", "tipserve.v1.EncoderService/SegmentImages"
    (over_rest,), (over_grpc,) = collector.named(rest), collector.named(rpc)
    stages = ("admit", "decode", "queue", "run", "post")
    for root in (over_rest, over_grpc):
        children = [span for span in collector.spans if span.parent_span_id == root.span_id]
        assert sorted(child.name for child in children) == sorted(stages)
    linked = {link.span_id for batch in collector.named("batch") for link in batch.links}
    assert linked == {over_rest.span_id, over_grpc.span_id}
    assert collector.resource["service.name"] == "tipserve"
    logged = {r["trace_id"]: r["method"] for r in records(service.program) if "trace_id" in r}
    assert logged == {over_rest.trace_id.hex(): rest, over_grpc.trace_id.hex(): rpc}


@contextmanager
def deaf_collector() -> Iterator[str]:
    """Accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@contextmanager
def no_collector() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("broken", [deaf_collector, no_collector])
def test_a_broken_collector_affects_neither_requests_nor_the_drain(
    run_service: RunService, photo: Callable[..., bytes], broken: Callable[[], Any]
) -> None:
    fields = {"images": [photo()], "outputs": ["cls1"]}
    with broken() as endpoint, run_service(f"--otlp-endpoint={endpoint}") as service:
        for _ in range(3):
            service.over_rest("embed_images", fields)
            service.over_grpc("embed_images", fields)
    # `run_service` has seen the exit status 0. The exporter's thread may log a retry after it.
    assert "stopped" in [record["message"] for record in records(service.program)[-3:]]


def records(program: "Program") -> list[dict[str, Any]]:
    """Parse every line of the log, which must be JSON."""
    return [json.loads(line) for line in program.log]


def test_every_line_of_the_log_is_json_with_its_request_id(
    run_service: RunService, photo: Callable[..., bytes]
) -> None:
    with run_service() as service:
        service.over_rest("embed_images", {"images": [photo()]})
        with pytest.raises(InvalidRequest):
            service.over_rest("embed_images", {"images": [b"none"]})
        service.over_grpc("embed_texts", {"texts": ["dog"]})
        with socket.create_connection(("127.0.0.1", service.ports["http"])) as wild:
            wild.sendall(b"\x16\x03\x01 no HTTP\r\n\r\n")
            wild.recv(1000)
        with socket.create_connection(("127.0.0.1", service.ports["grpc"])) as wild:
            wild.sendall(b"GET / HTTP/1.1\r\n\r\n")
    answered = [r for r in records(service.program) if r["message"] == "answered"]
    # REST logs after its answer, possibly after the next gRPC answer.
    answered.sort(key=lambda r: (r["method"], str(r["code"])))
    assert [(r["method"], r["code"], r.get("error")) for r in answered] == [
        ("POST /v1/images:embed", 200, None),
        ("POST /v1/images:embed", 422, "invalid_image"),
        ("tipserve.v1.EncoderService/EmbedTexts", "OK", None),
    ]
    assert len({r["request_id"] for r in answered}) == 3
    assert {"admit_s", "decode_s", "queue_s", "run_s", "post_s"} <= set(answered[0])


def test_a_log_that_is_not_read_stops_nothing(tiny_package: ModelPackage, tmp_path: Path) -> None:
    """The pipe holds one page and is not read; the log of these requests needs many."""
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 4096)
    ports_file = tmp_path / "ports.json"
    command = [sys.executable, "-m", "service", f"--model={tiny_package.path}", "--host=127.0.0.1"]
    command += ["--http-port=0", "--grpc-port=0", "--metrics-port=0", f"--ports-file={ports_file}"]
    process = subprocess.Popen(command, stderr=write_end)
    os.close(write_end)
    try:
        until = time.monotonic() + LIMIT_S
        while not ports_file.exists():
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        port = json.loads(ports_file.read_text())["http"]
        until = time.monotonic() + LIMIT_S
        answered = 0
        while answered < 100:
            assert time.monotonic() < until
            url = f"http://127.0.0.1:{port}/v1/texts:embed"
            answer = httpx.post(url, json={"texts": ["dog"]}, timeout=LIMIT_S)
            assert answer.status_code in ({200} if answered else {200, 503})
            answered += answer.status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == 0
    finally:
        process.kill()
        process.wait()
        os.close(read_end)
