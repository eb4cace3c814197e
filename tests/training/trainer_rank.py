"""One rank of runs that two ranks share, and the same runs for one process alone.

Arguments: rank, folder, data folder. test_trainer_ranks starts it twice, with `alone/pretrain` done
already, and reads the runs' folders; what a rank wrote, made, renamed or removed is left in
`rank-R.json`.
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch.distributed as dist

from training.config import DataConfig, ModelConfig, TrainingConfig
from training.data.batch import Batch
from training.data.crops import CropConfig
from training.data.loader import Stage
from training.data.scenes import SceneConfig
from training.evaluate.sets import development_benchmarks
from training.heads import HeadConfig
from training.inputs import scenes as scene_inputs
from training.methods.distill import DistillConfig
from training.methods.pretrain import PretrainConfig
from training.optim import OptimConfig
from training.parallel import ParallelKind
from training.preemption import Stopped
from training.run import run
from training.trainer import BatchSource

HEAD = HeadConfig(hidden=32, bottleneck=16, num_prototypes=24)
GLOBAL_BATCH = 8
STOP_AFTER = 7
KINDS: tuple[ParallelKind, ...] = ("ddp", "fsdp2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a run is: its root folder, the data, the teacher's run and how many ranks share it."""

    root: Path
    data: Path
    teacher: Path
    num_ranks: int


def config_of(case: str, place: Place) -> TrainingConfig:
    """The configuration of "pretrain", "distill" or "accumulate", by any way to share it.

    The first two are optimized by AdamW: Muon, as the third one has it, orthogonalises in bfloat16,
    and there the last bit of a sum over ranks becomes a hundred-thousandth of the loss.
    """
    scenes = SceneConfig(size=28, count_weights=(0.5, 0.5), min_size=0.5, max_size=0.9)
    config = TrainingConfig(
        name=case,
        method=PretrainConfig(head=HEAD),
        optim=OptimConfig(optimizer="adamw"),
        model=ModelConfig(
            dim=48, vision_layers=2, text_layers=1, heads=2, native_size=56, vocab_size=400
        ),
        data=DataConfig(
            folder=place.data,
            styles=("noto", "twemoji"),
            stages=(Stage(scenes=scenes),),
            crops=CropConfig(num_local=1, local_size=14),
            num_workers=0,
        ),
        num_steps=20,
        batch_size=GLOBAL_BATCH // place.num_ranks,
        precision="float32",
        runs=place.root,
        log_every=1,
        validate_every=0,
    )
    kind, _, method = case.rpartition("-")
    if kind:
        config = replace(config, parallel=KINDS[kind.startswith("fsdp2")])
    if method == "distill":
        return replace(config, method=DistillConfig(head=HEAD), teacher=place.teacher)
    if method == "accumulate":
        muon = OptimConfig(optimizer="muon")
        return replace(config, optim=muon, num_steps=4, accumulate=2, validate_every=4)
    return config


def simplify() -> None:
    """Take few scenes for tokenizer and validation."""
    scene_inputs._TOKENIZER_SCENES = 10
    few = partial(development_benchmarks, num_scenes=2)
    setattr(scene_inputs, "development_benchmarks", few)  # noqa: B010 - it is only imported there


@dataclass
class StopsItself:
    """Batches whose taker is sent SIGTERM with one of them."""

    batches: BatchSource
    number: int

    def loader(self, first_step: int, *, num_workers: int) -> Iterable[Batch]:
        """See `BatchSource`."""
        return self._send(self.batches.loader(first_step, num_workers=num_workers), first_step)

    def _send(self, batches: Iterable[Batch], first_step: int) -> Iterator[Batch]:
        for number, batch in enumerate(batches, start=first_step):
            if number == self.number:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch


def watch_writes(root: Path) -> set[str]:
    """Fill a set, from now on, with the paths under a folder that this process changes."""
    changed: set[str] = set()

    def note(event: str, arguments: tuple[object, ...]) -> None:
        is_open = event == "open" and isinstance(arguments[2], int)
        writes = is_open and bool(int(str(arguments[2])) & (os.O_WRONLY | os.O_RDWR))
        if writes or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir"):
            path = str(arguments[0])
            is_there = event == "os.mkdir" and os.path.isdir(path)
            if path.startswith(str(root)) and not is_there:
                changed.add(path.removeprefix(f"{root}/"))

    sys.addaudithook(note)
    return changed


def share(rank: int, name: str, folder: Path, do: Callable[[], object]) -> None:
    """Do something together; `run` leaves the process group at its end."""
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store-{name}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=200),
    )
    do()


def main(rank: int, folder: Path, data: Path) -> None:
    """Take part in all runs."""
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"}
    simplify()
    place = Place(root=folder / "shared", data=data, teacher=folder / "alone/pretrain", num_ranks=2)
    changed = watch_writes(place.root)
    for kind in KINDS:
        for method in ("pretrain", "distill", "accumulate"):
            config = config_of(f"{kind}-{method}", place)
            share(rank, config.name, folder, partial(run, config))
    # The second rank alone is asked to stop; a second start goes on.
    config = config_of("fsdp2-stopped-pretrain", place)
    wrap = (lambda batches: StopsItself(batches, STOP_AFTER)) if rank == 1 else None
    with suppress(Stopped):
        share(rank, "stopped", folder, partial(run, config, share=wrap))
    share(rank, "resumed", folder, partial(run, config))
    (folder / f"rank-{rank}.json").write_text(json.dumps(sorted(changed)), encoding="utf-8")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
