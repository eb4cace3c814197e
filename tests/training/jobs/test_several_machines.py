"""Training on several machines with the manifests' arguments, and preempted pods.

`trainjob-dev` runs with the variables that the Kubeflow Trainer gives to torchrun. Both pods of
`indexed-job-dev` run side by side and meet on a port of this machine. Training is in float32.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import Tipsv2Model

from tests.deploy.training_steps import Places, Step, build, environment, find, make_step
from tests.training.jobs.conftest import Running, in_float32

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
INDEX = "batch.kubernetes.io/job-completion-index"


@pytest.fixture(scope="module", autouse=True)
def _captions(places: Places) -> None:
    """Use the shards with the images' own captions, without a captioning step."""
    (places.root / "data/captioned").symlink_to("shards")


def trainjob_step(kind: str, places: Places) -> Step:
    """The pod of a TrainJob, with the variables that the Trainer gives it."""
    documents = build("trainjob-dev")
    trainer = find(documents, "TrainJob", f"tipserve-{kind}")["spec"]["trainer"]
    assert trainer["numNodes"] == 1
    given = {
        "PET_NNODES": "1",
        "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"]),
        "PET_NODE_RANK": "0",
        "PET_MASTER_ADDR": f"tipserve-{kind}-node-0-0.tipserve-{kind}",
        "PET_MASTER_PORT": "29400",
    }
    values = environment(trainer, documents, {}) | given
    return in_float32(make_step({**trainer, "name": kind}, values, places))


def indexed_steps(kind: str, places: Places) -> list[Step]:
    """Each pod of an Indexed Job."""
    documents = build("indexed-job-dev")
    job = find(documents, "Job", f"tipserve-{kind}")["spec"]
    (container,) = job["template"]["spec"]["containers"]
    return [
        in_float32(
            make_step(container, environment(container, documents, {INDEX: str(index)}), places)
        )
        for index in range(job["completions"])
    ]


def check_run(run: Path, *, num_ranks: int) -> None:
    """Check a finished run of three steps, sharded over a number of ranks, and its model."""
    (start,) = starts(run)
    assert (start["host"]["num_ranks"], start["config"]["parallel"]) == (num_ranks, "fsdp2")
    assert start["end"]
    last = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    assert json.loads(last)["step"] == 3
    assert Tipsv2Model.from_pretrained(run / "model").vision_model.config.hidden_size == 192


def test_a_trainjob_pretrains_and_its_model_teaches_on_two_machines(
    places: Places, running: Running
) -> None:
    ((status, text),) = running.run(trainjob_step("pretrain", places))
    assert status == 0, text
    check_run(places.root / "runs/pretrained-g14", num_ranks=2)
    ended = running.run(*indexed_steps("distill", places))
    assert [status for status, _ in ended] == [0, 0], "\n".join(text for _, text in ended)
    check_run(places.root / "runs/distilled-s14", num_ranks=2)


def starts(run: Path) -> list[dict[str, Any]]:
    record: dict[str, Any] = json.loads((run / "run.json").read_text(encoding="utf-8"))
    found: list[dict[str, Any]] = record["starts"]
    return found
