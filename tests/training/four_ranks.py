"""Four ranks that test_parallel starts, and the same steps for one process alone.

Argument: folder. Writes losses and weights of each kind of parallelism. The ranks
are forked, so that imports are paid for once.
"""

import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from tests.training.conftest import TINY_HEAD, cut_batch
from tests.training.methods.two_ranks import new_model, random_texts
from tests.training.ranks import join
from training.config import TrainingConfig
from training.data.batch import Batch
from training.distributed import mean_over_ranks, stop
from training.methods.pretrain import Pretrain, PretrainConfig
from training.optim import OptimConfig, build_optimizers
from training.parallel import ParallelKind, ParallelMethod, Precision
from training.update import Update

NUM_RANKS = 4
ROWS, PARTS = 16, 2
CASES: tuple[tuple[ParallelKind, Precision], ...] = (
    ("ddp", "float32"),
    ("fsdp2", "float32"),
    ("hsdp", "float32"),
    ("hsdp", "bfloat16"),
)


def global_batch() -> Batch:
    """Sixteen images with captions."""
    generator = torch.Generator().manual_seed(3)
    texts = random_texts(0, generator)
    return Batch(
        pixels_B3HW=torch.randint(0, 256, (ROWS, 3, 28, 28), generator=generator).byte(),
        locals_CB3hw=torch.randint(0, 256, (1, ROWS, 3, 14, 14), generator=generator).byte(),
        captioned_B=torch.ones(ROWS).bool(),
        cls1=random_texts(ROWS, generator),
        cls1_ids_T=torch.arange(ROWS),
        cls2=random_texts(ROWS, generator),
        cls2_ids_T=torch.arange(ROWS),
        names=texts,
        name_ids_U=torch.arange(0),
        present_BU=torch.zeros((ROWS, 0)).bool(),
    )


def take_steps(
    kind: ParallelKind, precision: Precision, *, rank: int = 0, num_ranks: int = 1
) -> dict[str, Any]:
    """Three steps of two micro-batches; the ranks have the parts of each in their order."""
    config = TrainingConfig(
        name=kind,
        method=PretrainConfig(head=TINY_HEAD),
        optim=OptimConfig(optimizer="adamw", adamw_lr=1e-4, warmup_steps=0),
        num_steps=9,
        accumulate=PARTS,
        precision=precision,
    )
    method = Pretrain(new_model(), PretrainConfig(head=TINY_HEAD))
    parallel = ParallelMethod(method, kind=kind, precision=precision)
    update = Update(config, parallel, build_optimizers([method], config.optim), rank=rank)
    micro = [cut_batch(global_batch(), part, PARTS) for part in range(PARTS)]
    own = [cut_batch(batch, rank, num_ranks) for batch in micro]
    rows = [update(own, step) for step in range(3)]
    return {
        "loss": [float(mean_over_ranks(row["loss"])) for row in rows],
        "grad_norm": [float(row["grad_norm"]) for row in rows],
        "weights": parallel.whole_state(),
        "local": sum(p.to_local().numel() for p in method.parameters() if isinstance(p, DTensor)),
    }


def main(rank: int, folder: Path) -> None:
    """Take the steps of every case."""
    torch.set_num_threads(1)
    join(rank, folder, num_ranks=NUM_RANKS)
    os.environ["LOCAL_WORLD_SIZE"] = "2"  # two machines of two ranks
    seen = {}
    for kind, precision in CASES:
        taken = take_steps(kind, precision, rank=rank, num_ranks=NUM_RANKS)
        seen[f"{kind} {precision}"] = taken
    torch.save(seen, folder / f"{rank}.pt")
    stop()


if __name__ == "__main__":
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=main, args=(r, Path(sys.argv[1]))) for r in range(NUM_RANKS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(any(process.exitcode for process in processes))
