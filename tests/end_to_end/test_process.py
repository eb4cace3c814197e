"""The program's lifecycle: start, settings, ports, signals, exit status, imports."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import copytree
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from model.package import ModelPackage

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Program, Service

RunService = Callable[..., Any]
LIMIT_S = 60.0


def test_it_writes_its_ports_serves_without_torch_and_ends_at_sigint(
    run_service: RunService, tmp_path: Path
) -> None:
    with run_service(f"--ports-file={tmp_path / 'ports.json'}") as service:
        ports = json.loads((tmp_path / "ports.json").read_text())
        assert ports == service.ports
        ready = httpx.get(f"http://127.0.0.1:{ports['http']}/v2/health/ready", timeout=LIMIT_S)
        assert ready.json() == {"ready": True}
        with grpc.insecure_channel(f"127.0.0.1:{ports['grpc']}") as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            for name in ("", "tipserve.v1.EncoderService", "tiny"):
                request = health_pb2.HealthCheckRequest(service=name)
                assert stub.Check(request, timeout=LIMIT_S).status == 1
            database = ProtoReflectionDescriptorDatabase(channel)
            names = set(database.get_services())
            reflections = {f"grpc.reflection.{v}.ServerReflection" for v in ("v1", "v1alpha")}
            assert {"tipserve.v1.EncoderService", *reflections} <= names
            # grpcurl describes every service, and looks up the details of errors.
            for name in (*names, "google.rpc.ErrorInfo", "google.rpc.BadRequest"):
                assert database.FindFileContainingSymbol(name).name
        maps = Path(f"/proc/{service.program.process.pid}/maps").read_text()
        assert "openvino" in maps
        assert "torch" not in maps
        service.program.process.send_signal(signal.SIGINT)
        assert service.program.process.wait(LIMIT_S) == 0


def test_every_metric_of_the_contract_is_exported(
    service: "Service", photo: Callable[..., bytes]
) -> None:
    fields = {"images": [photo()], "classes": ["dog"]}
    assert service.over_rest("segment_images", fields).status == "200"
    labels = '{code="200",method="POST /v1/images:segment",protocol="http"}'
    counted = f"tipserve_requests_total{labels}"
    until = time.monotonic() + LIMIT_S
    # REST counts after the answer is sent.
    while counted not in (text := service.metrics()):
        assert time.monotonic() < until, text
    for name in (
        "tipserve_request_duration_seconds_bucket",
        *(
            f'tipserve_stage_duration_seconds_count{{stage="{s}"}}'
            for s in ("admit", "decode", "queue", "run", "post")
        ),
        "tipserve_batch_images_bucket",
        "tipserve_batch_patches_bucket",
        'tipserve_queue_depth{bucket="image 56x56"} 0.0',
        "tipserve_queue_oldest_seconds 0.0",
        "# TYPE tipserve_rejected_total counter",
        "# TYPE tipserve_abandoned_total counter",
        "tipserve_inflight 0.0",
        "tipserve_text_cache_hits_total",
        'tipserve_model_info{device="cpu",name="tiny"',
        'tipserve_model_requests_total{code="200",model="tiny",protocol="http"}',
        'tipserve_model_request_duration_seconds_bucket{le="1.0",model="tiny",protocol="http"}',
        'tipserve_model_stage_duration_seconds_count{model="tiny",stage="run"}',
        'tipserve_model_batch_seconds_total{model="tiny"}',
        'tipserve_model_queue_depth{model="tiny"} 0.0',
        'tipserve_model_max_admitted_patches{model="tiny"}',
        "tipserve_build_info{",
        "tipserve_ready 1.0",
        "tipserve_cpus",
    ):
        assert name in text, name


NO_MODEL = ["--model=no/such/folder", "--http-port=0", "--grpc-port=0", "--metrics-port=0"]


@pytest.mark.parametrize(
    ("arguments", "environment", "status", "words"),
    [
        (["--htp-port=1"], {}, 2, "--htp-port"),
        (["--max-queue-patches=1"], {}, 2, "max_batch_patches"),
        (NO_MODEL, {}, 1, "no folder"),
        ([], {"TIPSERVE_HTP_PORT": "1"}, 2, "TIPSERVE_HTP_PORT"),
    ],
)
def test_a_wrong_setting_stops_the_start_and_is_named(
    arguments: list[str], environment: dict[str, str], status: int, words: str
) -> None:
    command = [sys.executable, "-m", "service", *arguments]
    result = subprocess.run(
        command,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert result.returncode == status
    assert words in result.stderr


def test_a_package_that_was_changed_is_not_served(
    run_program: "type[Program]", tiny_package: ModelPackage, tmp_path: Path
) -> None:
    folder = copytree(tiny_package.path, tmp_path / "changed")
    graph = folder / "onnx" / "text_model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"x")
    program = run_program(f"--model={folder}")
    assert program.process.wait(LIMIT_S) == 1
    program.end()
    assert "SHA-256" in "".join(program.log)


def test_callers_side_by_side_get_their_own_answers(service: "Service") -> None:
    texts = [["dog"], ["cat"], ["sky", "sea"], ["red house"]]
    expected = [service.over_rest("embed_texts", {"texts": t}).arrays for t in texts]
    barrier = threading.Barrier(8)

    def ask(index: int) -> bool:
        barrier.wait(LIMIT_S)
        transport = service.over_rest if index % 2 else service.over_grpc
        got = transport("embed_texts", {"texts": texts[index % 4]}).arrays
        return all((got[k] == v).all() for k, v in expected[index % 4].items())

    with ThreadPoolExecutor(8) as callers:
        assert all(callers.map(ask, range(8)))
