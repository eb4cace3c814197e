"""The program's lifecycle: start, settings, ports, signals, exit status, imports."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import TYPE_CHECKING, Any

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
        maps = Path(f"/proc/{service.program.process.pid}/maps").read_text()
        assert "openvino" in maps
        assert "torch" not in maps
        service.program.process.send_signal(signal.SIGINT)
        assert service.program.process.wait(LIMIT_S) == 0


def test_every_metric_of_the_contract_is_exported(
    service: "Service", photo: Callable[..., bytes]
) -> None:
    fields = {"images": [photo()], "classes": ["dog"]}
    service.over_rest("segment", fields)
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
