"""The serving image with minimal privileges: answers, drains, stays within its memory limit."""

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from model.package import BUNDLED_FOLDER, open_package
from model.runtime.choice import RuntimeRequest, choose_runtime
from tests.containers.engine import Engine
from tests.containers.running import LIMIT_S, UNPRIVILEGED, Container, is_served, running
from tests.processes.callers import Question, SteadyCallers
from tests.processes.server import Place, tipserve
from tipserve_client import Client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

CLASSES = ["burger", "sunflower", "book"]


@pytest.fixture(scope="module")
def scene(project_root: Path) -> Path:
    """Input image for the bundled model."""
    return project_root / "examples" / "scene.png"


@pytest.fixture(scope="module")
def served(engine: Engine, image: str) -> Iterator[Container]:
    """A ready hardened container on the image's default ports."""
    with running(engine, image) as container:
        url = f"http://{container.address}:8000/v2/health/ready"
        container.wait_for(lambda: is_served(url), "readiness")
        yield container


def test_it_computes_what_the_same_model_computes_outside(
    served: Container, scene: Path, tmp_path: Path
) -> None:
    tipserve("segment", scene, f"--classes={','.join(CLASSES)}", "-o", tmp_path / "mask.npy")
    outside = np.load(tmp_path / "mask.npy")
    assert len(np.unique(outside)) == len(CLASSES)
    for url in (f"http://{served.address}:8000", f"grpc://{served.address}:8001"):
        with Client(url, timeout_s=LIMIT_S) as client:
            (mask,) = client.segment(scene, CLASSES)
        np.testing.assert_array_equal(mask.labels, outside)
    chosen = served.record("runtime chosen")
    assert chosen is not None
    wanted = choose_runtime(open_package(BUNDLED_FOLDER), RuntimeRequest())
    assert (chosen["runtime"], chosen["precision"]) == (wanted.runtime, wanted.precision)


def test_metrics_and_health_answer(served: Container) -> None:
    metrics = httpx.get(f"http://{served.address}:8002/metrics", timeout=LIMIT_S)
    assert "tipserve_requests_total" in metrics.text
    served.wait_for(served.is_healthy, "health")


def test_it_runs_without_privileges(served: Container) -> None:
    assert UNPRIVILEGED.items() <= served.process_status().items()
    paths = ("/written", "/srv/written", "/opt/venv/written", "/tmp/written")
    assert [served.write(path) for path in paths] == ["EROFS", "EROFS", "EROFS", "written"]


def test_sigterm_under_load_fails_nothing(engine: Engine, image: str, scene: Path) -> None:
    ports = ("--http-port=0", "--grpc-port=0", "--metrics-port=0")
    arguments = (*ports, "--lanes=1", "--drain-delay-s=2")
    with running(engine, image, "--network=host", arguments=arguments) as container:
        ready = container.wait_for(lambda: container.record("ready"), "readiness")
        question = Question(images=[scene.read_bytes()])
        with SteadyCallers(Place(ready), question=question) as callers:
            callers.wait_for(25)
            engine.podman("stop", "--time=60", container.name)
            callers.wait_until_heeded()
        assert container.inspect("{{.State.ExitCode}}") == "0"
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
