"""The training loop: step, log, validate, save, stop. Independent of method and loss."""

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Protocol

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from training.checkpoint import load_checkpoint, save_checkpoint
from training.config import TrainingConfig
from training.data.batch import Batch
from training.distributed import mean_over_ranks, num_ranks, sum_over_ranks
from training.methods.base import Method
from training.observation import Log, Row, StepTimer
from training.optim import build_optimizers
from training.parallel import ParallelMethod
from training.preemption import Stopped, StopRequest
from training.update import Update, UpdateConfig

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
        rank: Of this process.
    """

    def __init__(
        self,
        config: TrainingConfig,
        method: Method,
        batches: BatchSource,
        *,
        validate: Validate | None = None,
        report: Callable[[Row], None] | None = None,
        rank: int = 0,
    ) -> None:
        self._config, self._batches, self._rank = config, batches, rank
        self._validate, self._report = validate, report
        self._folder: Path = config.folder
        self._folder.mkdir(parents=True, exist_ok=True)
        self._row_log = Log(self._folder)
        self.parallel = ParallelMethod(
            method,
            kind=config.parallel,
            compile_blocks=config.compile,
            checkpoint_activations=config.checkpoint_activations,
        )
        self.optimizers = build_optimizers([method], config.optim)
        update = UpdateConfig(
            optim=config.optim,
            num_steps=config.num_steps,
            accumulate=config.accumulate,
            precision=config.precision,
            seed=config.seed,
        )
        self._update = Update(update, self.parallel, self.optimizers, rank=rank)
        self._saved_step = 0

    def train(self, *, until: int | None = None) -> Row:
        """Train up to `until` steps (the whole run by default); returns the last log row.

        Raises:
            Stopped: A signal asked for a stop; the completed steps are saved.
            FloatingPointError: A gradient is not finite; the last checkpoint remains.
            ValueError: The data ends before the last step.
        """
        method = self.parallel.method
        done = load_checkpoint(self._folder, method=method, optimizers=self.optimizers)
        self._saved_step = done
        last = self._config.num_steps if until is None else until
        if self._rank == 0:
            self._row_log.drop_after(done)
        method.train()
        saved_at, row = time.monotonic(), Row()
        with StopRequest() as stop, self._progress_bar(done) as bar:
            batches, timer = self._loader(done), StepTimer()
            for step in range(done, last):
                with timer.waiting():
                    fetched = self._fetch(batches, step, stop)
                is_due = (step + 1) % self._config.log_every == 0 or step + 1 == last
                is_due |= self._validates_at(step + 1)
                metrics = self._update(fetched, step, is_logged=is_due)
                bar.advance(bar.task_ids[0])
                if is_due:
                    row = self._log(step + 1, metrics, timer)
                    bar.update(bar.task_ids[0], loss=f"{row['loss']:.3f}")
                is_late = time.monotonic() - saved_at > self._config.checkpoint_every_s
                if self._must_save(step + 1, stop, is_late=is_late):
                    self._save(step + 1)
                    saved_at = time.monotonic()
        self._save(max(done, last))
        return row

    def _loader(self, step: int) -> Iterator[Batch]:
        first = step * self._config.accumulate
        return iter(self._batches.loader(first, num_workers=self._config.data.num_workers))

    def _fetch(self, batches: Iterator[Batch], step: int, stop: StopRequest) -> list[Batch]:
        """Get the micro-batches of a step."""
        size = self._config.accumulate
        try:
            fetched = list(islice(batches, size))
        except RuntimeError:
            # A signal to the whole process group also ends the worker processes of the loader.
            if stop.is_requested and num_ranks() == 1:
                self._save(step)
                raise Stopped(step) from None
            raise
        if len(fetched) < size:
            raise ValueError(f"the data ends after {step} of {self._config.num_steps} steps")
        return fetched

    def _must_save(self, step: int, stop: StopRequest, *, is_late: bool) -> bool:
        """Whether a checkpoint is due by the clock of rank 0; all ranks get the same answer.

        Raises:
            Stopped: A rank was asked to stop; all ranks have saved.
        """
        asked = [int(stop.is_requested), int(is_late and self._rank == 0)]
        stops, saves = sum_over_ranks(asked)
        if stops:
            self._save(step)
            raise Stopped(step)
        return saves > 0

    def _validates_at(self, step: int) -> bool:
        every = self._config.validate_every
        return every > 0 and (step % every == 0 or step == self._config.num_steps)

    def _log(self, step: int, metrics: dict[str, Tensor], timer: StepTimer) -> Row:
        """Write a row: means over the ranks, rates, seconds per step and, if due, scores."""
        metrics = metrics | self.parallel.method.gauges() | self._update.learning_rates()
        values = mean_over_ranks(
            torch.stack([value.to(self.parallel.device) for value in metrics.values()])
        )
        row: Row = {"step": step}
        row |= {name: float(value) for name, value in zip(metrics, values, strict=True)}
        row |= timer.per_step()
        if self._validate and self._validates_at(step):
            self.parallel.method.eval()
            row |= self._validate(step)
            self.parallel.method.train()
            timer.restart()
        if self._rank == 0:
            self._row_log.append(row)
            if self._report:
                self._report(row)
        return row

    def _save(self, step: int) -> None:
        """Write a checkpoint, unless the newest one is of this step."""
        if step == self._saved_step:
            return
        save_checkpoint(
            self._folder,
            step=step,
            method=self.parallel.method,
            optimizers=self.optimizers,
            keep=self._config.keep_checkpoints,
        )
        self._saved_step = step

    def _progress_bar(self, done: int) -> Progress:
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TimeRemainingColumn(),
            refresh_per_second=1,
            disable=self._rank != 0,
        )
        bar.add_task(self._config.name, total=self._config.num_steps, completed=done, loss="")
        return bar
