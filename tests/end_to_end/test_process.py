"""The program's lifecycle: metrics, signals, exit status, memory of swapped models."""

import signal
import socket
from pathlib import Path
from shutil import copytree

import httpx
import pytest

from model.package import STUDENT_FOLDER
from tests.end_to_end.client import over_grpc, over_rest
from tests.end_to_end.conftest import RunService
from tests.processes.callers import until
from tests.processes.server import LIMIT_S, Server, photo, serve
from tests.tools import run
from tipserve_client import InvalidRequest

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


def test_it_serves_without_torch_and_ends_at_sigint(run_service: RunService) -> None:
    with run_service() as service:
        maps = Path(f"/proc/{service.process.pid}/maps").read_text()
        assert "openvino" in maps
        assert "torch" not in maps
        service.process.send_signal(signal.SIGINT)
        assert service.process.wait(LIMIT_S) == 0


def test_every_metric_of_the_contract_is_exported_and_pleases_promtool(service: Server) -> None:
    over_rest(service, "segment", {"images": [photo()], "classes": ["dog"]})
    with pytest.raises(InvalidRequest):
        over_grpc(service, "embed_images", {"images": [b"no image"]})
    counted = {"code": "200", "method": "POST /v1/images:segment", "protocol": "http"}
    # REST counts after the answer is sent.
    until(lambda: service.metric("tipserve_requests_total", **counted) > 0, "the request counts")
    text = httpx.get(service.metrics, timeout=LIMIT_S).text
    for name in METRICS:
        assert name in text, name
    done = run("promtool", "check", "metrics", input=text)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("first", "number"),
    [(signal.SIGTERM, signal.SIGINT), (signal.SIGHUP,) * 2],
)
def test_the_first_signal_drains_and_the_second_ends_the_program_at_once(
    run_service: RunService, first: signal.Signals, number: signal.Signals
) -> None:
    with run_service("--drain-delay-s=1000", is_ended=True) as service:
        service.process.send_signal(first)
        service.wait_for("draining")
        service.process.send_signal(number)
        assert service.process.wait(LIMIT_S) == -number


def test_workers_end_when_their_supervisor_is_killed(run_service: RunService) -> None:
    flags = ("--workers=2", "--lanes=2", "--pool-threads=2")
    with run_service(*flags, is_ended=True) as service:
        service.wait_for("all workers are ready")
        service.process.kill()
        service.process.wait(LIMIT_S)
        until(lambda: len(service.records("stopped")) == 2, "both workers have ended")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_port_that_is_taken_is_named_in_one_line(workers: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = serve("--model=bundled-student", f"--workers={workers}", f"--http-port={port}")
    assert done.returncode == 1
    assert str(port) in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


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
            return service.metric("process_resident_memory_bytes")

        before = service.metric("process_resident_memory_bytes")
        _, _, *sizes = [resident_after(package) for package in ("bundled", "again") * 5]
        unloaded = service.records("unloaded")
    one_model = sizes[0] - before
    # Documented limit: eight swaps keep less than the memory of one and a half models.
    assert sizes[-1] - sizes[0] < 1.5 * one_model, [round(s / 2**20) for s in (before, *sizes)]
    assert len(unloaded) >= 7, "or there was nothing to give back"
