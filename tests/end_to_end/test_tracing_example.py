"""The receiver in `examples/` shows traces of both protocols, also through a proxy."""

import http.client
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from service.grpc.generated import embed_pb2, image_pb2
from service.grpc.generated.encoder_service_pb2_grpc import EncoderServiceStub
from tests.processes.proxy import Proxy
from tests.processes.service_process import running_service
from tests.tools import find_tool

LIMIT_S = 60.0
TRACES = {"REST": "0af7651916cd43dd8448eb211c80319c", "gRPC": "4bf92f3577b34da6a3ce929d0e0e4736"}
CALLER = "b7ad6b7169203331"
ROOTS = {"REST": "POST /v1/images:embed", "gRPC": "tipserve.v1.EncoderService/EmbedImages"}
# The headers are read first; what they say is admitted, and then decoded.
STAGES = ["decode", "admit", "queue", "run", "post"]


class Watcher:
    """The running example; a thread reads its output."""

    def __init__(self, project_root: Path) -> None:
        command = [sys.executable, str(project_root / "examples" / "watch_traces.py"), "--port=0"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stderr is not None
        self.endpoint = self.process.stderr.readline().split()[-1]
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines += [line.rstrip("\n") for line in self.process.stdout]

    def end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join(LIMIT_S)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


@pytest.fixture
def watcher(project_root: Path) -> Iterator[Watcher]:
    running = Watcher(project_root)
    yield running
    running.end()


def traceparent(protocol: str) -> str:
    return f"00-{TRACES[protocol]}-{CALLER}-01"


def ask_both(ports: dict[str, int], image: bytes) -> None:
    """Send one request per protocol, each with its own trace context."""
    connection = http.client.HTTPConnection("127.0.0.1", ports["http"], timeout=LIMIT_S)
    headers = {"Content-Type": "image/jpeg", "traceparent": traceparent("REST")}
    connection.request("POST", "/v1/images:embed?outputs=cls1", image, headers)
    assert connection.getresponse().status == 200
    connection.close()
    with grpc.insecure_channel(f"127.0.0.1:{ports['grpc']}") as channel:
        stub: Any = EncoderServiceStub(channel)
        request = embed_pb2.EmbedImagesRequest(
            images=[image_pb2.Image(encoded=image)], outputs=[embed_pb2.IMAGE_OUTPUT_CLS1]
        )
        metadata = (("traceparent", traceparent("gRPC")),)
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
    watcher: Watcher,
    photo: Callable[..., bytes],
    project_root: Path,
    tmp_path: Path,
) -> None:
    flags = ("--host=127.0.0.1", "--model=bundled-student", "--lanes=1")
    log = tmp_path / "service.log"
    with (
        Proxy(find_tool("haproxy"), tmp_path) as proxy,
        running_service(*flags, f"--otlp-endpoint={watcher.endpoint}", log_path=log) as replica,
    ):
        proxy.put_in(1, replica)
        ask_both(proxy.ports, photo())
        # The service has drained, so all spans have arrived.
    watcher.end()
    shown = "\n".join(watcher.lines)
    for protocol, root in ROOTS.items():
        tree = re.search(
            rf"^trace {TRACES[protocol]}  tipserve tipserve-0\n((?:  .*\n?)+)", shown, re.M
        )
        assert tree, shown
        first, *rest = tree[1].splitlines()
        assert root in first
        assert f"parent={CALLER}" in first
        assert [re.match(r"    (\w+) ", line)[1] for line in rest] == STAGES  # type: ignore[index]
    assert len(re.findall(r"^  batch ", shown, re.MULTILINE)) == 2
    logged = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert {record["trace_id"] for record in logged if "trace_id" in record} == {*TRACES.values()}
    page = (project_root / "docs" / "tracing.md").read_text(encoding="utf-8")
    named = set(re.findall(r" ([a-z]+\.[a-z_.]+)=", shown))
    assert len(named) > 8
    assert {name for name in named if f"`{name}`" not in page} == set()
