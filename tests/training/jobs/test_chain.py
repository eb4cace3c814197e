"""The chain of `deploy/training/chain-dev/`: the manifest's commands and arguments, in order.

`tests/deploy/training_steps.py` describes what is replaced. PaliGemma is a tiny one with random
weights, drawings are coloured shapes, and training is in float32.
"""

import io
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from PIL import Image

from benchmarks.service_process import running_service
from model.package import open_package
from tests.deploy.training_steps import (
    Places,
    Step,
    build,
    chain_steps,
    environment,
    find,
    make_step,
)
from tests.training.jobs.conftest import Running, in_float32
from training.__main__ import main

RUN = "tipserve-retrain-1"
LIMIT_S = 120.0
# The chain's seven processes run inside the first test; on a busy machine that takes minutes.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def steps_of(name: str, places: Places) -> dict[str, Step]:
    """The steps of one variant, with its files where the pod has them."""
    documents = build(name)
    for file, text in find(documents, "ConfigMap", "tipserve-retrain-files")["data"].items():
        (places.root / "config" / file).write_text(text, encoding="utf-8")
    labels = {"batch.kubernetes.io/job-name": RUN}
    made = [
        make_step(container, environment(container, documents, labels), places)
        for container in chain_steps(documents)
    ]
    return {step.name: in_float32(step) if step.name == "distill" else step for step in made}


@dataclass(frozen=True)
class Chain:
    """A finished chain, and the output of its steps."""

    places: Places
    steps: dict[str, Step]
    said: dict[str, str]

    @property
    def run(self) -> Path:
        return self.places.root / "runs" / RUN

    @property
    def models(self) -> Path:
        return self.places.root / "models"


@pytest.fixture(scope="module")
def chain(places: Places, running: Running) -> Chain:
    """All steps, each after the previous one has succeeded."""
    steps, said = steps_of("chain-dev", places), {}
    for name, step in steps.items():
        ((status, said[name]),) = running.run(step)
        assert status == 0, f"{name} ended with {status}:\n{said[name]}"
    return Chain(places=places, steps=steps, said=said)


def test_every_step_succeeds(chain: Chain) -> None:
    assert "8 captions, 0 failed" in chain.said["caption"]
    assert f"{RUN}: steps 0 to 4, on 2 x cpu" in chain.said["distill"]
    assert "paligemma 8" in chain.said["distill"]
    assert "| student - served | mIoU |" in chain.said["evaluate"]
    assert chain.said["gate"].startswith("passed  zero-shot segmentation | seen styles")
    assert "student is ready in" in chain.said["export"]


def test_the_trained_weights_are_published(chain: Chain) -> None:
    first, last = (Path(chain.said[name].strip()) for name in ("first", "publish"))
    assert first != last
    assert (chain.models / "current").resolve() == last.resolve()
    package = open_package(last)
    weights = (chain.run / "model" / "model.safetensors").read_bytes()
    assert (last / "model.safetensors").read_bytes() == weights
    manifest = package.manifest
    assert (manifest.name, manifest.embed_dim) == ("student", 192)
    assert manifest.provenance["compared_with"] == first.name
    assert manifest.provenance["recipe"] == RUN
    assert {entry.row for entry in manifest.scores} >= {"student", "served", "student - served"}


def test_a_restarted_pod_skips_finished_steps(chain: Chain, running: Running) -> None:
    kept = [chain.run / "model/model.safetensors", chain.run / "log.jsonl"]
    before = [path.read_bytes() for path in kept]
    published = sorted(chain.models.iterdir())
    for name in ("first", "distill", "publish"):
        ((status, text),) = running.run(chain.steps[name])
        assert status == 0, text
        if name == "distill":
            assert f"{RUN}: steps 4 to 4" in text
    assert [path.read_bytes() for path in kept] == before
    assert sorted(chain.models.iterdir()) == published


def test_the_shipped_gate_refuses_this_student(
    chain: Chain, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = steps_of("chain", chain.places)["gate"]
    assert gate.command == chain.steps["gate"].command
    program, arguments = gate.command[1:4], gate.command[4:]
    assert program == ["-P", "-m", "training"]
    status = main(arguments)
    said = capsys.readouterr()
    assert status == 3, said.err
    assert "FAILED  zero-shot segmentation | seen styles" in said.out
    assert said.err.startswith("refused: ")
    assert "must reach 30.00" in said.err
    policy = find(build("chain"), "CronJob", "tipserve-retrain")["spec"]["jobTemplate"]["spec"]
    assert policy["podFailurePolicy"]["rules"][1]["onExitCodes"]["values"] == [status]


def test_the_service_answers_by_the_published_package(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As its Deployment names the version.
    monkeypatch.setenv("TIPSERVE_MODEL", chain.said["publish"].strip())
    image = io.BytesIO()
    Image.new("RGB", (60, 40), (90, 120, 60)).save(image, "PNG")
    with running_service("--host=127.0.0.1") as service:
        answer = httpx.post(
            f"{service.http_url}/v1/images:segment?classes=wall,sky",
            content=image.getvalue(),
            headers={"Content-Type": "image/png", "Accept": "image/png"},
            timeout=LIMIT_S,
        )
        models = httpx.get(f"{service.http_url}/v1/models", timeout=LIMIT_S).json()
    assert answer.status_code == 200, answer.text
    assert Image.open(io.BytesIO(answer.content)).size == (60, 40)
    assert [entry["id"] for entry in models["data"]] == ["student"]


def test_a_rollback_is_one_command(chain: Chain) -> None:
    first, last = (Path(chain.said[name].strip()).name for name in ("first", "publish"))
    assert rollback(chain.models) == first
    assert open_package(chain.models / "current").manifest.name == "tipserve-student"
    assert rollback(chain.models, "--to", last) == last


def rollback(repository: Path, *more: str) -> str:
    """Roll back; returns the version that is current then."""
    command = [sys.executable, "-m", "model", "rollback", "--repository", str(repository), *more]
    ended = subprocess.run(command, capture_output=True, check=True, text=True, timeout=LIMIT_S)
    return Path(ended.stdout.strip()).name
