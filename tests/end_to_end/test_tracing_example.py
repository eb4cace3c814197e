"""Traces and log lines of the real program.

The receiver in `examples/` shows traces of both protocols through a proxy; a broken collector
and a log that nobody reads stop nothing.
"""

import fcntl
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import yaml

from model.package import ModelPackage
from service.grpc.generated import embed_pb2, image_pb2
from service.grpc.generated.encoder_service_pb2_grpc import EncoderServiceStub
from tests.processes.proxy import Proxy
from tests.processes.service_process import running_service, wait_until_ready
from tipserve_client import InvalidRequest

RunService = Callable[..., Any]
LIMIT_S = 60.0
TRACES = {"REST": "0af7651916cd43dd8448eb211c80319c", "gRPC": "4bf92f3577b34da6a3ce929d0e0e4736"}
CALLER = "b7ad6b7169203331"
ROOTS = {"REST": "POST /v1/images:embed", "gRPC": "tipserve.v1.EncoderService/EmbedImages"}
# The headers are read first; what they say is admitted, and then decoded.
STAGES = ["decode", "admit", "queue", "run", "post"]


def ask_both(ports: dict[str, int], image: bytes) -> None:
    """Send one request per protocol, each with its own trace context."""
    parents = {protocol: f"00-{trace}-{CALLER}-01" for protocol, trace in TRACES.items()}
    connection = http.client.HTTPConnection("127.0.0.1", ports["http"], timeout=LIMIT_S)
    headers = {"Content-Type": "image/jpeg", "traceparent": parents["REST"]}
    connection.request("POST", "/v1/images:embed?outputs=cls1", image, headers)
    assert connection.getresponse().status == 200
    connection.close()
    with grpc.insecure_channel(f"127.0.0.1:{ports['grpc']}") as channel:
        stub: Any = EncoderServiceStub(channel)
        request = embed_pb2.EmbedImagesRequest(
            images=[image_pb2.Image(encoded=image)], outputs=[embed_pb2.IMAGE_OUTPUT_CLS1]
        )
        metadata = (("traceparent", parents["gRPC"]),)
        stub.EmbedImages(request, timeout=LIMIT_S, metadata=metadata)


@pytest.fixture
def _pod(project_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pod's variables, with names filled in as by Kubernetes."""
    patch = project_root / "deploy" / "kubernetes" / "components" / "tracing" / "pod_names.yaml"
    template = yaml.safe_load(patch.read_text(encoding="utf-8"))["spec"]["template"]
    (container,) = template["spec"]["containers"]
    (value,) = [v["value"] for v in container["env"] if v["name"] == "OTEL_RESOURCE_ATTRIBUTES"]
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", value.replace("$(POD_NAME)", "tipserve-0"))
    # Export everything at the end, so that no trace is split in two.
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")


@pytest.mark.usefixtures("_pod")
def test_traces_come_through_the_proxy_and_are_shown_as_trees(
    photo: Callable[..., bytes], project_root: Path, tmp_path: Path
) -> None:
    watch = [sys.executable, str(project_root / "examples" / "watch_traces.py"), "--port=0"]
    flags = ("--host=127.0.0.1", "--model=bundled-student", "--lanes=1", "--image-cache-bytes=0")
    log = tmp_path / "service.log"
    with subprocess.Popen(
        watch, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as watcher:
        try:
            assert watcher.stderr is not None
            endpoint = watcher.stderr.readline().split()[-1]
            with (
                Proxy(tmp_path) as proxy,
                running_service(*flags, f"--otlp-endpoint={endpoint}", log_path=log) as replica,
            ):
                proxy.put_in(1, replica)
                ask_both({"http": proxy.http_port, "grpc": proxy.grpc_port}, photo())
            # The service has drained, so all spans have arrived.
        finally:
            watcher.terminate()
        shown, _ = watcher.communicate(timeout=LIMIT_S)
    for protocol, root in ROOTS.items():
        tree = re.search(
            rf"^trace {TRACES[protocol]}  tipserve tipserve-0\n((?:  .*\n?)+)", shown, re.M
        )
        assert tree, shown
        first, *rest = tree[1].splitlines()
        assert root in first
        assert f"parent={CALLER}" in first
        assert [line.split()[0] for line in rest if line.startswith("    ")] == STAGES
    logged = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert {record["trace_id"] for record in logged if "trace_id" in record} == {*TRACES.values()}
    page = (project_root / "docs" / "tracing.md").read_text(encoding="utf-8")
    named = set(re.findall(r" ([a-z]+\.[a-z_.]+)=", shown))
    assert len(named) > 8
    assert {name for name in named if f"`{name}`" not in page} == set()


def test_the_log_is_json_with_request_ids_and_a_deaf_collector_delays_nothing(
    run_service: RunService, photo: Callable[..., bytes]
) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as deaf,
        run_service(f"--otlp-endpoint=http://127.0.0.1:{deaf.getsockname()[1]}") as service,
    ):
        service.over_rest("embed_images", {"images": [photo()]})
        with pytest.raises(InvalidRequest):
            service.over_rest("embed_images", {"images": [b"none"]})
        service.over_grpc("embed_texts", {"texts": ["dog"]})
        for name, wild in (("http", b"\x16\x03\x01 no HTTP\r\n\r\n"), ("grpc", b"GET / HTTP/1.1")):
            with socket.create_connection(("127.0.0.1", service.ports[name])) as connection:
                connection.sendall(wild)
                connection.shutdown(socket.SHUT_WR)
                connection.recv(1000)
    # `run_service` has seen the exit status 0.
    records = [json.loads(line) for line in service.program.log]
    answered = [record for record in records if record["message"] == "answered"]
    # REST logs after its answer, possibly after the next gRPC answer.
    answered.sort(key=lambda r: (r["method"], str(r["code"])))
    assert [(r["method"], r["code"], r.get("error")) for r in answered] == [
        ("POST /v1/images:embed", 200, None),
        ("POST /v1/images:embed", 422, "invalid_image"),
        ("tipserve.v1.EncoderService/EmbedTexts", "OK", None),
    ]
    assert len({r["request_id"] for r in answered}) == 3
    assert {"admit_s", "decode_s", "queue_s", "run_s", "post_s"} <= set(answered[0])
    assert service.program.records("stopped")


def test_a_log_that_is_not_read_and_a_missing_collector_stop_nothing(
    tiny_package: ModelPackage, tmp_path: Path
) -> None:
    """The pipe holds one page and is not read; the log of these requests needs many."""
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 4096)
    ports_file = tmp_path / "ports.json"
    command = [sys.executable, "-m", "service", f"--model={tiny_package.path}", "--host=127.0.0.1"]
    command += ["--http-port=0", "--grpc-port=0", "--metrics-port=0", f"--ports-file={ports_file}"]
    command += ["--otlp-endpoint=http://127.0.0.1:9"]  # nobody listens there
    process = subprocess.Popen(command, stderr=write_end)
    os.close(write_end)
    try:
        url = f"{wait_until_ready(process, ports_file).http_url}/v1/texts:embed"
        for _ in range(100):
            answer = httpx.post(url, json={"texts": ["dog"]}, timeout=LIMIT_S)
            assert answer.status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == 0
    finally:
        process.kill()
        process.wait()
        os.close(read_end)
