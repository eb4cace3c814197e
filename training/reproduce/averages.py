"""What each way of averaging costs: bytes of state, and processor time of a step as a ratio.

The ways take turns on the same batch in one process, so that a busy machine slows all alike.
"""

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args

import torch

from training.config import TrainingConfig
from training.data.batch import Batch
from training.ema import EmaScope
from training.memory import count_state
from training.methods.base import Method, Step
from training.methods.pretrain import PretrainConfig
from training.optim import build_optimizers
from training.run import build_method

AVERAGES_FILE = "averages.json"
_SKIPPED = 2  # first steps make the optimizers' state


@dataclass(frozen=True, slots=True, kw_only=True)
class AverageCost:
    """Cost of one way of averaging.

    Attributes:
        ema: "head", "full" or "none".
        parameter_bytes: What is trained.
        ema_bytes: The averages.
        optimizer_bytes: The optimizers' state after a step.
        step_s: Processor seconds of a step, median.
        ratio_to_head: Median over steps of this step's time by the head-only one's.
        ratio_low: 25 % point of the ratio.
        ratio_high: 75 % point.
    """

    ema: str
    parameter_bytes: int
    ema_bytes: int
    optimizer_bytes: int
    step_s: float
    ratio_to_head: float
    ratio_low: float
    ratio_high: float

    @property
    def total_bytes(self) -> int:
        """Everything that is kept between steps."""
        return self.parameter_bytes + self.ema_bytes + self.optimizer_bytes


class _TimedMethod:
    """A method with its optimizers, one of several that take turns."""

    def __init__(self, config: TrainingConfig, vocab_size: int) -> None:
        self.method: Method = build_method(config, vocab_size)
        self.optimizers = build_optimizers([self.method], config.optim)
        self.times_s: list[float] = []
        self.method.train()

    def step(self, batch: Batch, number: int) -> None:
        """Train on a batch as the trainer does, and note the processor time."""
        rows = len(batch.pixels_B3HW)
        generator = torch.Generator().manual_seed(number)
        place = Step(progress=0.5, generator=generator, first_row=0, global_rows=rows)
        started_s = time.process_time()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = self.method(batch, place).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.method.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.method.after_step()
        self.times_s.append(time.process_time() - started_s)


def measure_averages(
    config: TrainingConfig, batches: Sequence[Batch], *, vocab_size: int
) -> list[AverageCost]:
    """Measure head-only, full and no averaging on the same batches.

    Args:
        config: A pretraining run; its way of averaging is replaced.
        batches: More than two of them.
        vocab_size: Of the model's tokenizer.
    """
    assert isinstance(config.method, PretrainConfig)
    modes = get_args(EmaScope)
    timed = {
        mode: _TimedMethod(replace(config, method=replace(config.method, ema=mode)), vocab_size)
        for mode in modes
    }
    for number, batch in enumerate(batches):
        for turn in range(len(modes)):  # nobody is always the first
            timed[modes[(number + turn) % len(modes)]].step(batch, number)
    head_s = timed["head"].times_s[_SKIPPED:]
    return [_cost(mode, timed[mode], head_s) for mode in modes]


def _cost(mode: str, timed: _TimedMethod, head_s: Sequence[float]) -> AverageCost:
    state = count_state(timed.method, timed.optimizers)
    times_s = timed.times_s[_SKIPPED:]
    ratios = [own / head for own, head in zip(times_s, head_s, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return AverageCost(
        ema=mode,
        parameter_bytes=state.parameters,
        ema_bytes=state.ema,
        optimizer_bytes=state.optimizer,
        step_s=statistics.median(times_s),
        ratio_to_head=middle,
        ratio_low=low,
        ratio_high=high,
    )


def save_averages(costs: Sequence[AverageCost], folder: Path) -> None:
    """Keep the costs in a folder."""
    text = json.dumps([asdict(cost) for cost in costs], indent=1)
    (folder / AVERAGES_FILE).write_text(text + "\n", encoding="utf-8")


def load_averages(folder: Path) -> list[AverageCost]:
    """Read the costs; empty where they were not measured."""
    path = folder / AVERAGES_FILE
    if not path.exists():
        return []
    return [AverageCost(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
