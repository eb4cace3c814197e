"""One rank of the runs of test_trainer_ranks, and the same runs for one process alone.

Arguments: rank, folder with `images` and `probe`.
"""

import os
import signal
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import TINY_HEAD, make_tiny_config
from tests.training.ranks import join, leave
from training.config import TrainingConfig
from training.data.batch import Batch
from training.data.crops import CropConfig
from training.data.shards.batches import ShardsConfig
from training.methods.pretrain import PretrainConfig
from training.optim import OptimConfig
from training.parallel import ParallelKind
from training.preemption import Stopped
from training.run import run
from training.trainer import Trainer

GLOBAL_BATCH = 8
NUM_STEPS, STOP_AFTER = 8, 3
KINDS: tuple[ParallelKind, ...] = ("ddp", "fsdp2", "hsdp")
STOPPED = "fsdp2-stopped"


def config_of(name: str, root: Path, *, num_ranks: int) -> TrainingConfig:
    """Eight steps by AdamW; or, by the name's end, four of two micro-batches by Muon or bfloat16.

    Muon orthogonalises in bfloat16, where the last bit of a sum over ranks becomes a
    hundred-thousandth of the loss.
    """
    data = ShardsConfig(
        folder=root.parent / "images",
        crops=CropConfig(global_size=28, num_local=1, local_size=14),
        num_workers=0,
    )
    config = replace(
        make_tiny_config(root),
        name=name,
        method=PretrainConfig(head=TINY_HEAD),
        data=data,
        num_steps=NUM_STEPS,
        batch_size=GLOBAL_BATCH // num_ranks,
        parallel=next((kind for kind in KINDS if name.startswith(kind)), "ddp"),
        runs=root,
    )
    if name.endswith("bfloat16"):
        return replace(config, num_steps=4, accumulate=2, precision="bfloat16")
    if not name.endswith("accumulate"):
        return config
    muon, probed = OptimConfig(optimizer="muon"), replace(data, probe=root.parent / "probe")
    return replace(config, optim=muon, num_steps=4, accumulate=2, validate_every=4, data=probed)


def main(rank: int, folder: Path) -> None:
    """Take part in all runs; `run` leaves the process group at its end."""
    patch = pytest.MonkeyPatch()
    patch.setenv("LOCAL_WORLD_SIZE", "1")  # two machines
    for kind in KINDS:
        last = "bfloat16" if kind == "hsdp" else "accumulate"
        for name in (kind, f"{kind}-{last}"):
            join(rank, folder, f"store-{name}")
            run(config_of(name, folder / "shared", num_ranks=2))
    # Only the second rank is asked to stop; a second start resumes.
    config, fetch = config_of(STOPPED, folder / "shared", num_ranks=2), Trainer._fetch

    def stop_itself(self: Trainer, batches: Any, step: int, stop: Any) -> list[Batch]:
        if rank == 1 and step == STOP_AFTER:
            os.kill(os.getpid(), signal.SIGTERM)
        return fetch(self, batches, step, stop)

    join(rank, folder, "store-stopped")
    with patch.context() as stopping, suppress(Stopped):
        stopping.setattr(Trainer, "_fetch", stop_itself)
        run(config)
    join(rank, folder, "store-resumed")
    run(config)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
    leave()
