"""One rank of the runs of test_trainer_ranks, and the same runs for one process alone.

Arguments: rank, folder, data folder. The folder has the finished run `alone/pretrain`. Every path
that the rank writes, makes, renames or removes is listed in `rank-R.json`.
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

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
from training.trainer import BatchSource

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


@dataclass
class StopsItself:
    """Batches that send this process SIGTERM with one of them."""

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


def main(rank: int, folder: Path, data: Path) -> None:
    """Take part in all runs; `run` leaves the process group at its end."""

    def share(name: str, do: Callable[[], object]) -> None:
        join(rank, folder, f"store-{name}")
        do()

    use_few_scenes(pytest.MonkeyPatch())
    place = Place(root=folder / "shared", data=data, teacher=folder / "alone/pretrain", num_ranks=2)
    changed = watch_writes(place.root)
    for kind in KINDS:
        for method in ("pretrain", "distill", "accumulate"):
            config = config_of(f"{kind}-{method}", place)
            share(config.name, partial(run, config))
    # Only the second rank is asked to stop; a second start resumes.
    config = config_of("fsdp2-stopped-pretrain", place)
    wrap = (lambda batches: StopsItself(batches, STOP_AFTER)) if rank == 1 else None
    with suppress(Stopped):
        share("stopped", partial(run, config, share=wrap))
    share("resumed", partial(run, config))
    (folder / f"rank-{rank}.json").write_text(json.dumps(sorted(changed)), encoding="utf-8")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
    leave()
