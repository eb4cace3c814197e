"""The program's lifecycle: ports, metrics, signals, exit status, memory of swapped models."""

import json
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from model.package import STUDENT_FOLDER, ModelPackage
from tests.promises.callers import until
from tests.tools import find_tool
from tipserve_client import InvalidRequest

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Program, Service

RunService = Callable[..., Any]
RunProgram = Callable[..., "Program"]
LIMIT_S = 60.0
METRICS = (
    "tipserve_request_duration_seconds_bucket",
    *(
        f'tipserve_stage_duration_seconds_count{{stage="{stage}"}}'
        for stage in ("admit", "decode", "queue", "run", "post")
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
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
)


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


def test_every_metric_of_the_contract_is_exported_and_pleases_promtool(
    service: "Service", photo: Callable[..., bytes]
) -> None:
    service.over_rest("segment", {"images": [photo()], "classes": ["dog"]})
    with pytest.raises(InvalidRequest):
        service.over_grpc("embed_images", {"images": [b"no image"]})
    counted = 'tipserve_requests_total{code="200",method="POST /v1/images:segment",protocol="http"}'
    # REST counts after the answer is sent.
    until(lambda: counted in service.metrics(), "the request is counted")
    text = service.metrics()
    for name in METRICS:
        assert name in text, name
    command = [find_tool("promtool"), "check", "metrics"]
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("first", "number"),
    [(signal.SIGTERM, signal.SIGINT), (signal.SIGHUP,) * 2],
)
def test_the_first_signal_drains_and_the_second_ends_the_program_at_once(
    run_program: RunProgram,
    tiny_package: ModelPackage,
    first: signal.Signals,
    number: signal.Signals,
) -> None:
    program = run_program(f"--model={tiny_package.path}", "--drain-delay-s=1000")
    try:
        program.wait_for("ready")
        program.process.send_signal(first)
        program.wait_for("draining")
        program.process.send_signal(number)
        assert program.process.wait(LIMIT_S) == -number
    finally:
        program.end()


def test_workers_end_when_their_supervisor_is_killed(
    run_program: RunProgram, tiny_package: ModelPackage
) -> None:
    program = run_program(
        f"--model={tiny_package.path}", "--workers=2", "--lanes=2", "--pool-threads=2"
    )
    program.wait_for("all workers are ready")
    program.process.kill()
    program.process.wait(LIMIT_S)
    until(lambda: len(program.records("stopped")) == 2, "both workers have ended")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_port_that_is_taken_is_named_in_one_line(
    run_program: RunProgram, tiny_package: ModelPackage, workers: int
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        arguments = (f"--model={tiny_package.path}", f"--workers={workers}")
        program = run_program(*arguments, f"--http-port={port}")
        assert program.process.wait(LIMIT_S) == 1
    assert str(port) in program.log[-1]
    assert "Traceback" not in "".join(program.log)


def test_memory_is_freed_after_swaps(run_service: RunService, tmp_path: Path) -> None:
    for name in ("bundled", "again"):
        copytree(STUDENT_FOLDER, tmp_path / name)
    flags = ("--lanes=1", "--enable-management", f"--model-repository={tmp_path}")
    with run_service(*flags) as service:

        def resident_after(package: str) -> float:
            """Load it in place of the other."""
            url = f"{service.rest}/v2/repository/models/swapped/load"
            body = {"parameters": {"package": package}}
            assert httpx.post(url, json=body, timeout=LIMIT_S).status_code == 200
            return float(service.metric("process_resident_memory_bytes"))

        before = float(service.metric("process_resident_memory_bytes"))
        _, _, *sizes = [resident_after(package) for package in ("bundled", "again") * 5]
        unloaded = service.program.records("unloaded")
    one_model = sizes[0] - before
    # Documented limit: eight swaps keep less than the memory of one and a half models.
    assert sizes[-1] - sizes[0] < 1.5 * one_model, [round(s / 2**20) for s in (before, *sizes)]
    assert len(unloaded) >= 7, "or there was nothing to give back"
