"""The training loop: step, log, validate, save, stop. Independent of method and loss."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Protocol

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from training.checkpoint import CheckpointWriter, load_checkpoint
from training.config import TrainingConfig
from training.data.batch import Batch
from training.distributed import (
    is_first_rank,
    mean_over_ranks,
    num_ranks,
    own_rank,
    sum_over_ranks,
    wait_for_all,
)
from training.methods.base import Method
from training.observation import Log, Row, StepTimer
from training.optim import build_optimizers
from training.parallel import ParallelMethod, move
from training.preemption import Stopped, StopRequest, stop_request
from training.run_store import RunStore
from training.update import Update

Validate = Callable[[int], Row]


class BatchSource(Protocol):
    """Source of batches: batch i is always the same."""

    def loader(self, first_step: int, *, num_workers: int) -> Iterable[Batch]:
        """Iterate from a batch on, prefetched by worker processes if there are any.

        A step takes `accumulate` batches: batch i belongs to step i // accumulate.
        """


class Trainer:
    """Runs a method over batches until the last step, from the newest checkpoint on.

    Args:
        config: The run.
        method: The method to train; it is moved to the device and, under FSDP2, sharded.
        batches: This rank's share of the batches.
        validate: Scores the model after a number of steps. Called on every rank, because gathering
            a sharded model takes all of them; the result of rank 0 is added to the log row.
        report: Called with every log row, on rank 0.

    Attributes:
        parallel: The method on its device.
        optimizers: Of its parameters.
    """

    def __init__(
        self,
        config: TrainingConfig,
        method: Method,
        batches: BatchSource,
        *,
        validate: Validate | None = None,
        report: Callable[[Row], None] | None = None,
    ) -> None:
        # `training.run` has chosen.
        assert config.precision != "auto"
        assert config.optim.optimizer != "auto"
        self._config, self._batches = config, batches
        self._validate, self._report = validate, report
        self._folder: Path = config.folder
        self._folder.mkdir(parents=True, exist_ok=True)
        self._row_log = Log(self._folder)
        self.parallel = ParallelMethod(
            method,
            kind=config.parallel,
            precision=config.precision,
            compile_blocks=config.compile,
            checkpoint_activations=config.checkpoint_activations,
        )
        self.optimizers = build_optimizers([method], config.optim)
        self._update = Update(config, self.parallel, self.optimizers, rank=own_rank())
        keep, copy = config.keep_checkpoints, None
        if config.checkpoint_store is not None:
            copy = partial(RunStore(self._folder, config.checkpoint_store).put, keep=keep)
        self._writer = CheckpointWriter(self._folder, keep=keep, copy=copy)
        self._saved_step, self._saved_at_s = 0, 0.0
        self._timer, self._row = StepTimer(), Row()

    def train(self, *, until: int | None = None) -> Row:
        """Train up to `until` steps (the whole run by default); returns the last log row.

        Raises:
            Stopped: A signal asked for a stop; the completed steps are saved.
            FloatingPointError: A gradient is not finite; the last checkpoint remains.
            ValueError: The data ends before the last step.
        """
        done = self._resume()
        last = self._config.num_steps if until is None else until
        with ExitStack() as context:
            context.callback(self._writer.finish)
            stop = context.enter_context(stop_request())
            bar = context.enter_context(self._progress_bar(done))
            first, num_workers = done * self._config.accumulate, self._config.data.num_workers
            batches = iter(self._batches.loader(first, num_workers=num_workers))
            for step in range(done, last):
                with self._timer.waiting():
                    fetched = self._fetch(batches, step, stop)
                self._take(step, fetched, is_last=step + 1 == last)
                loss = f"{self._row['loss']:.3f}" if self._row else ""
                bar.update(bar.task_ids[0], advance=1, loss=loss)
                self._save_if_due(step + 1, stop)
            self._save(last)
        wait_for_all()
        return self._row

    def _resume(self) -> int:
        """Load the newest checkpoint and prepare to train; returns the completed steps."""
        method = self.parallel.method
        self._saved_step = load_checkpoint(self._folder, method=method, optimizers=self.optimizers)
        self._saved_at_s = time.monotonic()
        if is_first_rank():
            self._row_log.drop_after(self._saved_step)
        method.train()
        self._timer.restart()
        return self._saved_step

    def _take(self, step: int, batches: Sequence[Batch], *, is_last: bool) -> None:
        """Take a step, and write a log row if one is due."""
        is_due = (step + 1) % self._config.log_every == 0 or is_last
        is_due |= self._validates_at(step + 1)
        metrics = self._update(batches, step, is_logged=is_due)
        if is_due:
            self._row = self._log(step + 1, metrics)

    def _validates_at(self, step: int) -> bool:
        every = self._config.validate_every
        return every > 0 and (step % every == 0 or step == self._config.num_steps)

    def _log(self, step: int, metrics: dict[str, Tensor]) -> Row:
        """Write a row: means over the ranks, rates, seconds per step and, if due, scores."""
        metrics = metrics | self.parallel.method.gauges() | self._update.learning_rates()
        values = mean_over_ranks(
            torch.stack([value.to(self.parallel.device) for value in metrics.values()])
        )
        row: Row = {"step": step}
        row |= {name: float(value) for name, value in zip(metrics, values, strict=True)}
        row |= self._timer.per_step()
        if self._validate and self._validates_at(step):
            self.parallel.method.eval()
            row |= self._validate(step)
            self.parallel.method.train()
            self._timer.restart()
        if is_first_rank():
            self._row_log.append(row)
            if self._report:
                self._report(row)
        return row

    def _save(self, step: int) -> None:
        """Begin a checkpoint, unless the newest one is of this step or a later one."""
        self._saved_at_s = time.monotonic()
        if step > self._saved_step:
            method = self.parallel.method
            self._writer.start(step=step, method=method, optimizers=self.optimizers)
            self._saved_step = step

    def _save_if_due(self, step: int, stop: StopRequest) -> None:
        """Save by the clock of rank 0, or because a rank was asked to stop; all ranks do the same.

        Raises:
            Stopped: A rank was asked to stop; all ranks have saved.
        """
        is_late = time.monotonic() - self._saved_at_s > self._config.checkpoint_every_s
        asked = [int(stop.is_requested), int(is_late and is_first_rank())]
        stops, saves = sum_over_ranks(asked)
        if stops or saves:
            self._save(step)
        if stops:
            raise Stopped(step)

    def _fetch(self, batches: Iterator[Batch], step: int, stop: StopRequest) -> list[Batch]:
        """Get the micro-batches of a step, on the device."""
        config, device = self._config, self.parallel.device
        try:
            fetched = [move(batch, device) for batch in islice(batches, config.accumulate)]
        except RuntimeError:
            # A signal to the whole process group also ends the worker processes of the loader.
            if stop.is_requested and num_ranks() == 1:
                self._save(step)
                raise Stopped(step) from None
            raise
        if len(fetched) < config.accumulate:
            raise ValueError(f"the data ends after {step} of {config.num_steps} steps")
        return fetched

    def _progress_bar(self, done: int) -> Progress:
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TimeRemainingColumn(),
            refresh_per_second=1,
            disable=not is_first_rank(),
        )
        bar.add_task(self._config.name, total=self._config.num_steps, completed=done, loss="")
        return bar
