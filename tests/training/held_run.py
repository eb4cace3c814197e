"""A run that waits for a line on its input with one of its batches, for test_preemption to stop it.

Arguments: data folder, runs, number of workers, number of the batch.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from training.__main__ import main
from training.commands import train as train_command
from training.config import DataConfig, ModelConfig, TrainingConfig
from training.data.batch import Batch
from training.data.loader import Stage
from training.data.scenes import SceneConfig
from training.heads import HeadConfig
from training.inputs import scenes as scene_inputs
from training.methods.pretrain import PretrainConfig
from training.run import run
from training.trainer import BatchSource


def config_of(data: str, runs: str, num_workers: str) -> TrainingConfig:
    """Six steps of pretraining."""
    scenes = SceneConfig(size=28, count_weights=(0.5, 0.5), min_size=0.5, max_size=0.9)
    return TrainingConfig(
        name="held",
        method=PretrainConfig(head=HeadConfig(hidden=32, bottleneck=16, num_prototypes=24)),
        model=ModelConfig(
            dim=48, vision_layers=2, text_layers=1, heads=2, native_size=56, vocab_size=400
        ),
        data=DataConfig(
            folder=Path(data),
            styles=("noto", "twemoji"),
            stages=(Stage(scenes=scenes),),
            num_workers=int(num_workers),
        ),
        num_steps=6,
        batch_size=4,
        runs=Path(runs),
        log_every=1,
        validate_every=0,
    )


@dataclass
class Held:
    """Batches of which one comes only when a line has been read."""

    batches: BatchSource
    number: int

    def loader(self, first_step: int, *, num_workers: int) -> Iterable[Batch]:
        """See `BatchSource`."""
        return self._hold(self.batches.loader(first_step, num_workers=num_workers), first_step)

    def _hold(self, batches: Iterable[Batch], first_step: int) -> Iterator[Batch]:
        for number, batch in enumerate(batches, start=first_step):
            if number == self.number:
                print("waiting", flush=True)
                sys.stdin.readline()
            yield batch


def hold(arguments: list[str], number: int) -> int:
    """Run the program's own command with these batches."""
    scene_inputs._TOKENIZER_SCENES = 10
    config = config_of(*arguments)
    train_command.RECIPES["debug"] = lambda: config
    held = partial(run, share=lambda batches: Held(batches, number))
    setattr(train_command, "train", held)  # noqa: B010 - mypy holds it to be nobody else's
    return main(["debug"])


if __name__ == "__main__":
    sys.exit(hold(sys.argv[1:-1], int(sys.argv[-1])))
