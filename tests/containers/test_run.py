"""The serving image with minimal privileges: answers, drains, stays within its memory limit."""

import io
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from model.package import BUNDLED_FOLDER, open_package
from model.runtime.choice import RuntimeRequest, choose_runtime
from service.grpc.generated import image_pb2, segment_pb2
from service.grpc.generated.encoder_service_pb2_grpc import EncoderServiceStub
from tests.containers.engine import Engine
from tests.containers.running import LIMIT_S, UNPRIVILEGED, Container, is_served, running
from tests.promises.callers import Question, SteadyCallers
from tests.promises.servers import Place

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

CLASSES = ["burger", "sunflower", "book"]


@pytest.fixture(scope="module")
def served(engine: Engine, image: str) -> Iterator[Container]:
    """A ready hardened container on the image's default ports."""
    with running(engine, image) as container:
        url = f"http://{container.address}:8000/v2/health/ready"
        container.wait_for(lambda: is_served(url), "readiness")
        yield container


@pytest.fixture(scope="module")
def mask_outside(project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> NDArray[Any]:
    """Mask of the same model on this machine, outside a container."""
    output = tmp_path_factory.mktemp("mask") / "mask.npy"
    command = [sys.executable, "-m", "tipserve_cli", "segment", "examples/scene.png"]
    command += ["--classes", ",".join(CLASSES), "--output", str(output)]
    subprocess.run(command, cwd=project_root, check=True, capture_output=True, timeout=LIMIT_S)
    mask: NDArray[Any] = np.load(output)
    assert len(np.unique(mask)) == len(CLASSES)
    return mask


def test_rest_answers_as_outside(
    served: Container, scene: bytes, mask_outside: NDArray[Any]
) -> None:
    url = f"http://{served.address}:8000/v1/images:segment?classes={','.join(CLASSES)}"
    headers = {"Content-Type": "image/png", "Accept": "application/x-npy"}
    answer = httpx.post(url, content=scene, headers=headers, timeout=LIMIT_S)
    assert np.array_equal(np.squeeze(np.load(io.BytesIO(answer.content))), mask_outside)


def test_grpc_answers_as_outside(
    served: Container, scene: bytes, mask_outside: NDArray[Any]
) -> None:
    request = segment_pb2.SegmentImagesRequest(
        images=[image_pb2.Image(encoded=scene)],
        classes=[segment_pb2.SegmentClass(name=name) for name in CLASSES],
    )
    with grpc.insecure_channel(f"{served.address}:8001") as channel:
        answer = EncoderServiceStub(channel).SegmentImages(request, timeout=LIMIT_S)
    labels = answer.segmentations[0].labels
    assert np.array_equal(np.frombuffer(labels.data, "<u2").reshape(labels.shape), mask_outside)


def test_the_runtime_is_the_one_chosen_outside_the_image(served: Container) -> None:
    chosen = served.record("runtime chosen")
    assert chosen is not None
    outside = choose_runtime(open_package(BUNDLED_FOLDER), RuntimeRequest())
    assert (chosen["runtime"], chosen["precision"]) == (outside.runtime, outside.precision)


def test_metrics_and_health_answer(served: Container) -> None:
    metrics = httpx.get(f"http://{served.address}:8002/metrics", timeout=LIMIT_S)
    assert "tipserve_requests_total" in metrics.text
    served.wait_for(served.is_healthy, "health")


def test_it_runs_without_privileges(served: Container) -> None:
    assert UNPRIVILEGED.items() <= served.process_status().items()
    paths = ("/written", "/srv/written", "/opt/venv/written", "/tmp/written")
    assert [served.write(path) for path in paths] == ["EROFS", "EROFS", "EROFS", "written"]


def test_sigterm_under_load_fails_nothing(engine: Engine, image: str, scene: bytes) -> None:
    ports = ("--http-port=0", "--grpc-port=0", "--metrics-port=0")
    arguments = (*ports, "--lanes=1", "--drain-delay-s=2")
    with running(engine, image, "--network=host", arguments=arguments) as container:
        ready = container.wait_for(lambda: container.record("ready"), "readiness")
        http, grpc_, metrics = (f"127.0.0.1:{ready[name]}" for name in ("http", "grpc", "metrics"))
        place = Place(f"http://{http}", grpc_, f"http://{metrics}/metrics")
        with SteadyCallers(place, question=Question(images=[scene])) as callers:
            callers.wait_for(25)
            engine.podman("stop", "--time=60", container.name)
            callers.wait_until_heeded()
        assert container.inspect("{{.State.ExitCode}}") == "0"
        assert container.record("draining") is not None
        assert not callers.others, callers.outcomes


def test_too_little_memory_ends_only_the_container(engine: Engine, image: str) -> None:
    too_little = ("--memory=100m", "--memory-swap=100m")
    with running(engine, image, *too_little) as container:
        until = time.monotonic() + LIMIT_S
        while container.inspect("{{.State.Status}}") != "exited":
            assert time.monotonic() < until, container.log()
            time.sleep(0.1)
        assert container.inspect("{{.State.OOMKilled}}") == "true", container.log()
        assert container.inspect("{{.State.ExitCode}}") == "137"
