"""The chain of `deploy/training/chain-dev/`: the manifest's commands and arguments, in order.

`tests/deploy/training_steps.py` describes what is replaced. PaliGemma is a tiny one with random
weights, drawings are coloured shapes, and training is in float32.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

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

RUN = "tipserve-retrain-1"
# The whole chain runs inside the first test; on a busy machine that takes minutes.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def steps_of(name: str, places: Places) -> dict[str, Step]:
    """The steps of one variant, with its files where the pod has them."""
    documents = build(name)
    for file, text in find(documents, "ConfigMap", "tipserve-retrain-files")["data"].items():
        (places.root / "config" / file).write_text(places.move(text), encoding="utf-8")
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
    def versions(self) -> tuple[Path, Path]:
        """The version published before the student was judged, and the student's."""
        first, *_, last = self.said["publish"].splitlines()
        return Path(first), Path(last)

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
    assert "| student - served | mIoU |" in chain.said["publish"]
    assert "\npassed  zero-shot segmentation | seen styles" in chain.said["publish"]
    assert "student is ready in" in chain.said["publish"]


def test_the_trained_weights_are_published(chain: Chain) -> None:
    first, last = chain.versions
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
    said = {"distill": f"{RUN}: steps 4 to 4", "hand-over": "", "publish": f"{RUN} is judged\n"}
    for name, expected in said.items():
        ((status, text),) = running.run(chain.steps[name])
        assert status == 0, text
        assert expected in text
    assert [path.read_bytes() for path in kept] == before
    assert sorted(chain.models.iterdir()) == published


def test_the_shipped_gate_refuses_this_student_once(chain: Chain, running: Running) -> None:
    """The script with commands in place of Python's, of which only the gate is the real one."""
    steps = steps_of("chain", chain.places)
    published, judged = sorted(chain.models.iterdir()), chain.run / "judged"
    assert steps["publish"].command == chain.steps["publish"].command
    programs = chain.places.root / "programs"
    programs.mkdir()
    python = programs / "python"
    python.write_text(f'#!/bin/sh\ntest "$4" != gate || exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    variables = dict(steps["publish"].variables)
    variables["PATH"] = f"{programs}:{variables['PATH']}"
    judged.unlink()
    step = replace(steps["publish"], variables=variables)
    (status, said), (again, nothing) = running.run(step)[0], running.run(step)[0]
    assert status == 3, said
    assert "FAILED  zero-shot segmentation | seen styles" in said
    assert "refused: " in said
    assert "must reach 30.00" in said
    assert (again, nothing.strip().endswith("is judged")) == (0, True)
    assert sorted(chain.models.iterdir()) == published
