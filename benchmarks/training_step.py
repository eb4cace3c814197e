"""The trainer's step against a bare loop, in CPU time.

Claim: the additions of the trainer to a step (clipping, finite check, schedules, averages, log,
progress bar, signal handling) cost at most 10 % of the step.
Run: python -m benchmarks.training_step [--data data] [--pairs 20]

Both sides train the same method from the same weights on the same prepared batches. Their steps
alternate in one process, so that other load affects both. The bare loop is a forward pass, a
backward pass and the optimizers' steps. Every step is logged, while recipes log one in twenty.
Checkpoints are written by the clock and measured separately.
"""

import argparse
import copy
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median, quantiles

import numpy as np
import torch
from transformers import Tipsv2Tokenizer

from model.package import STUDENT_FOLDER
from model.runtime.machine import this_hardware
from training.checkpoint import save_checkpoint
from training.config import DataConfig, TrainingConfig
from training.data.batch import Batch, RunShare
from training.inputs.scenes import SceneInputs
from training.methods.base import Method, Step
from training.methods.pretrain import Pretrain, PretrainConfig
from training.optim import build_optimizers
from training.recipes import bundled
from training.run import new_model
from training.trainer import Trainer

_WARM_UP = 2
_NUM_BATCHES = 4


class BareLoop:
    """Minimal training loop."""

    def __init__(self, config: TrainingConfig, method: Method) -> None:
        self._config, self._method = config, method.train()
        self._optimizers = build_optimizers([method], config.optim)

    def step(self, batch: Batch, number: int) -> tuple[float, float]:
        """Run one step with the trainer's random choices; CPU seconds of passes and optimizers."""
        seed = np.random.SeedSequence((self._config.seed, number, 0)).generate_state(1, np.uint64)
        step = Step(
            progress=number / self._config.num_steps,
            generator=torch.Generator().manual_seed(int(seed[0])),
            first_row=0,
            global_rows=len(batch.pixels_B3HW),
        )
        start_s = time.process_time()
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, self._config.precision == "bfloat16"):
            loss = self._method(batch, step).loss
        loss.backward()
        passed_s = time.process_time()
        for optimizer in self._optimizers:
            optimizer.step()
        return passed_s - start_s, time.process_time() - passed_s


class Alternating:
    """Batch source of the trainer that runs a bare step before each batch.

    `pairs` gets the CPU seconds of each trainer's step, and of the bare step's passes and
    optimizers. The trainer's last step is missing, because its end is not visible here.
    """

    def __init__(self, batches: Sequence[Batch], bare: BareLoop, num_steps: int) -> None:
        self._batches, self._bare, self._num_steps = batches, bare, num_steps
        self.pairs: list[tuple[float, float, float]] = []

    def loader(self, first_step: int, *, num_workers: int) -> Iterator[Batch]:
        """Return the prepared batches, see `BatchSource`."""
        for number in range(first_step, self._num_steps):
            batch = self._batches[number % len(self._batches)]
            bare = self._bare.step(batch, number)
            start_s = time.process_time()
            yield batch
            self.pairs.append((time.process_time() - start_s, *bare))


def build_config(options: argparse.Namespace, folder: Path) -> TrainingConfig:
    """Return the small teacher's recipe in its longest stage, with the patch loss throughout."""
    recipe = bundled.teacher()
    assert isinstance(recipe.method, PretrainConfig)
    assert isinstance(recipe.data, DataConfig)
    data = replace(recipe.data, folder=options.data, stages=recipe.data.stages[-1:], num_workers=0)
    return replace(
        recipe,
        method=replace(recipe.method, ibot_start=0.0),
        data=data,
        num_steps=_WARM_UP + options.pairs + 1,
        log_every=1,
        validate_every=0,
        runs=folder,
    )


def measure(config: TrainingConfig) -> tuple[list[tuple[float, float, float]], float]:
    """CPU seconds of pairs of steps after the first pair, and of a checkpoint."""
    torch.set_num_threads(config.threads)
    assert isinstance(config.method, PretrainConfig)
    assert isinstance(config.data, DataConfig)
    tokenizer = Tipsv2Tokenizer.from_pretrained(STUDENT_FOLDER)
    share = RunShare(batch_size=config.batch_size, num_steps=_NUM_BATCHES)
    scenes = SceneInputs(config, config.data).batches(tokenizer, share)
    batches = [scenes[number] for number in range(_NUM_BATCHES)]
    method = Pretrain(new_model(config, len(tokenizer)), config.method)
    bare = BareLoop(config, copy.deepcopy(method))
    source = Alternating(batches, bare, config.num_steps)
    trainer = Trainer(config, method, source, report=lambda row: None)
    trainer.train()
    start_s = time.process_time()
    save_checkpoint(
        config.folder, step=config.num_steps + 1, method=method, optimizers=trainer.optimizers
    )
    return source.pairs[_WARM_UP:], time.process_time() - start_s


def describe(ratios: Sequence[float]) -> str:
    """Format the median and the interquartile range."""
    low, _, high = quantiles(ratios, n=4)
    return f"{median(ratios):.3f} (middle half {low:.3f} to {high:.3f})"


def main() -> None:
    """Measure both sides and print their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, default=Path("data"), help="folder filled by `python -m training data`"
    )
    parser.add_argument("--pairs", type=int, default=20, help="steps per side")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = build_config(options, Path(folder))
        pairs, checkpoint_s = measure(config)
    size = config.data.stages[0].scenes.size if isinstance(config.data, DataConfig) else 0
    bare_s = median(passes_s + optimizers_s for _, passes_s, optimizers_s in pairs)
    share = median(optimizers_s / (passes_s + optimizers_s) for _, passes_s, optimizers_s in pairs)
    print(
        f"{config.name}: {config.batch_size} images of {size} pixels a step, {config.precision}, "
        f"{config.optim.optimizer}, {config.threads} thread of {this_hardware().cpu_name}\n"
        f"CPU time, {len(pairs)} pairs of steps that alternate; a bare step takes {bare_s:.2f} s, "
        f"of which its optimizers {share:.1%}"
    )
    print("trainer / bare loop:", describe([s / (p_s + o_s) for s, p_s, o_s in pairs]))
    print("trainer / passes alone:", describe([s / passes_s for s, passes_s, _ in pairs]))
    print(
        f"a checkpoint costs {checkpoint_s / bare_s:.2f} bare steps, every "
        f"{config.checkpoint_every_s:.0f} s of wall time"
    )


if __name__ == "__main__":
    main()
