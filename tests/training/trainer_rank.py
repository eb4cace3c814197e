"""One rank of the runs of test_trainer_ranks, and the same runs for one process alone.

Arguments: rank, folder, data folder. The folder has the finished run `alone/pretrain`.
"""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import TINY_HEAD, make_tiny_config, use_few_scenes
from tests.training.ranks import join, leave
from training.config import DataConfig, TrainingConfig
from training.data.batch import Batch
from training.data.crops import CropConfig
from training.methods.distill import DistillConfig
from training.methods.pretrain import PretrainConfig
from training.optim import OptimConfig
from training.parallel import ParallelKind
from training.preemption import Stopped
from training.run import run
from training.trainer import Trainer

GLOBAL_BATCH = 8
STOP_AFTER = 7
KINDS: tuple[ParallelKind, ...] = ("ddp", "fsdp2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Root folder of the runs, the data, the teacher's run, and the number of ranks."""

    root: Path
    data: Path
    teacher: Path
    num_ranks: int


def config_of(case: str, place: Place) -> TrainingConfig:
    """The run "pretrain", "distill" or "accumulate", after "ddp-" or "fsdp2-" for two ranks.

    The first two use AdamW. Muon orthogonalises in bfloat16, where the last bit of a sum over ranks
    becomes a hundred-thousandth of the loss.
    """
    tiny = make_tiny_config(place.root)
    assert isinstance(tiny.data, DataConfig)
    config = replace(
        tiny,
        name=case,
        method=PretrainConfig(head=TINY_HEAD),
        data=replace(tiny.data, folder=place.data, crops=CropConfig(num_local=1, local_size=14)),
        num_steps=20,
        batch_size=GLOBAL_BATCH // place.num_ranks,
        runs=place.root,
    )
    kind, _, method = case.rpartition("-")
    if kind:
        config = replace(config, parallel=KINDS[kind.startswith("fsdp2")])
    if method == "distill":
        return replace(config, method=DistillConfig(head=TINY_HEAD), teacher=place.teacher)
    if method == "accumulate":
        muon = OptimConfig(optimizer="muon")
        return replace(config, optim=muon, num_steps=4, accumulate=2, validate_every=4)
    return config


def main(rank: int, folder: Path, data: Path) -> None:
    """Take part in all runs; `run` leaves the process group at its end."""

    def share(name: str, do: Callable[[], object]) -> None:
        join(rank, folder, f"store-{name}")
        do()

    patch = pytest.MonkeyPatch()
    use_few_scenes(patch)
    place = Place(root=folder / "shared", data=data, teacher=folder / "alone/pretrain", num_ranks=2)
    for kind in KINDS:
        for method in ("pretrain", "distill", "accumulate"):
            config = config_of(f"{kind}-{method}", place)
            share(config.name, partial(run, config))
    # Only the second rank is asked to stop; a second start resumes.
    config, fetch = config_of("fsdp2-stopped-pretrain", place), Trainer._fetch

    def stop_itself(self: Trainer, batches: Any, step: int, stop: Any) -> list[Batch]:
        if rank == 1 and step == STOP_AFTER:
            os.kill(os.getpid(), signal.SIGTERM)
        return fetch(self, batches, step, stop)

    with patch.context() as stopping, suppress(Stopped):
        stopping.setattr(Trainer, "_fetch", stop_itself)
        share("stopped", partial(run, config))
    share("resumed", partial(run, config))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
    leave()
