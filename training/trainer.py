"""The training loop: step, log, validate, save, stop. Independent of method and loss."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Protocol

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.profiler import profile, schedule, tensorboard_trace_handler

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
from training.methods.base import Method, TeacherPass
from training.observation import Log, Row, StepTimer
from training.optim import build_optimizers
from training.parallel import ParallelMethod, move
from training.preemption import Stopped, StopRequest
from training.run_store import RunStore
from training.update import Update, UpdateConfig

Validate = Callable[[int], Row]
PROFILE_FOLDER = "profile"
_STEPS_BEFORE_PROFILE = 3


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
        least_step_s: Seconds of a step at the peak speed of a device whose peak is known: the log
            has the achieved share of it, "mfu".

    Attributes:
        config: The run.
        batches: As above.
        parallel: The method on its device.
        optimizers: Of its parameters.
        timer: Of the steps since the last log row.
        row: The last log row; empty before the first one.
    """

    def __init__(
        self,
        config: TrainingConfig,
        method: Method,
        batches: BatchSource,
        *,
        validate: Validate | None = None,
        report: Callable[[Row], None] | None = None,
        least_step_s: float | None = None,
    ) -> None:
        self.config, self.batches = config, batches
        self._validate, self._report = validate, report
        self._least_step_s = least_step_s
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
        update = UpdateConfig(
            optim=config.optim,
            num_steps=config.num_steps,
            accumulate=config.accumulate,
            precision=config.precision,
            seed=config.seed,
        )
        self._update = Update(update, self.parallel, self.optimizers, rank=own_rank())
        keep, copy = config.keep_checkpoints, None
        if config.checkpoint_store is not None:
            copy = partial(RunStore(self._folder, config.checkpoint_store).put, keep=keep)
        self._writer = CheckpointWriter(self._folder, keep=keep, copy=copy)
        self._saved_step, self.timer, self.row = 0, StepTimer(), Row()

    def train(self, *, until: int | None = None) -> Row:
        """Train up to `until` steps (the whole run by default); returns the last log row.

        Raises:
            Stopped: A signal asked for a stop; the completed steps are saved.
            FloatingPointError: A gradient is not finite; the last checkpoint remains.
            ValueError: The data ends before the last step.
        """
        (row,) = train_together([self], until=until)
        return row

    def resume(self) -> int:
        """Load the newest checkpoint and prepare to train; returns the completed steps."""
        method = self.parallel.method
        self._saved_step = load_checkpoint(self._folder, method=method, optimizers=self.optimizers)
        if is_first_rank():
            self._row_log.drop_after(self._saved_step)
        method.train()
        self.timer.restart()
        return self._saved_step

    def take(
        self, step: int, batches: Sequence[Batch], passes: Sequence[TeacherPass], *, is_last: bool
    ) -> None:
        """Take a step, and write a log row if one is due."""
        is_due = (step + 1) % self.config.log_every == 0 or is_last
        is_due |= self._validates_at(step + 1)
        metrics = self._update(batches, step, is_logged=is_due, passes=passes)
        if is_due:
            self.row = self._log(step + 1, metrics)

    def _validates_at(self, step: int) -> bool:
        every = self.config.validate_every
        return every > 0 and (step % every == 0 or step == self.config.num_steps)

    def _log(self, step: int, metrics: dict[str, Tensor]) -> Row:
        """Write a row: means over the ranks, rates, seconds per step and, if due, scores."""
        metrics = metrics | self.parallel.method.gauges() | self._update.learning_rates()
        values = mean_over_ranks(
            torch.stack([value.to(self.parallel.device) for value in metrics.values()])
        )
        row: Row = {"step": step}
        row |= {name: float(value) for name, value in zip(metrics, values, strict=True)}
        row |= self.timer.per_step()
        if self._least_step_s is not None:
            row["mfu"] = round(self._least_step_s / max(row["step_s"], 1e-4), 4)
        if self._validate and self._validates_at(step):
            self.parallel.method.eval()
            row |= self._validate(step)
            self.parallel.method.train()
            self.timer.restart()
        if is_first_rank():
            self._row_log.append(row)
            if self._report:
                self._report(row)
        return row

    def save(self, step: int) -> None:
        """Begin a checkpoint, unless the newest one is of this step or a later one."""
        if step <= self._saved_step:
            return
        method = self.parallel.method
        self._writer.start(step=step, method=method, optimizers=self.optimizers)
        self._saved_step = step

    def finish_saving(self) -> None:
        """Wait until this rank's part of the last checkpoint is on disk."""
        self._writer.finish()


def train_together(trainers: Sequence[Trainer], *, until: int | None = None) -> list[Row]:
    """Train on the same batches, step by step; with a common teacher, on one pass of it.

    All save at the same steps. One whose newest checkpoint is ahead waits for the others.

    Args:
        trainers: At least one; the first one's settings and batches drive the loop.
        until: Steps to train up to; None for the whole run.

    Returns:
        The last log row of each.

    Raises:
        Stopped, FloatingPointError, ValueError: See `Trainer.train`.
    """
    first = trainers[0]
    done = [trainer.resume() for trainer in trainers]
    last = first.config.num_steps if until is None else until
    saved_at = time.monotonic()
    with ExitStack() as context:
        for trainer in trainers:
            context.callback(trainer.finish_saving)
        stop = context.enter_context(StopRequest())
        bar = context.enter_context(_progress_bar(first, min(done)))
        profiler = context.enter_context(_profiler(first))
        batches = _loader(first, min(done))
        for step in range(min(done), last):
            with ExitStack() as waits:
                for trainer in trainers:
                    waits.enter_context(trainer.timer.waiting())
                fetched = _fetch(batches, step, trainers, stop)
            passes = [TeacherPass() for _ in fetched]
            for trainer, own_done in zip(trainers, done, strict=True):
                if step >= own_done:
                    trainer.take(step, fetched, passes, is_last=step + 1 == last)
            if profiler is not None:
                profiler.step()
            loss = f"{first.row['loss']:.3f}" if first.row else ""
            bar.update(bar.task_ids[0], advance=1, loss=loss)
            is_late = time.monotonic() - saved_at > first.config.checkpoint_every_s
            if _must_save(step + 1, trainers, stop, is_late=is_late):
                _save_all(trainers, step + 1)
                saved_at = time.monotonic()
        _save_all(trainers, last)
    wait_for_all()
    return [trainer.row for trainer in trainers]


@contextmanager
def _profiler(first: Trainer) -> Iterator[profile | None]:
    """Records some steps on this rank, after the first ones, in which compilers and caches work."""
    num_steps = first.config.profile_steps
    if num_steps == 0:
        yield None
        return
    folder = str(first.config.folder / PROFILE_FOLDER)
    with profile(
        schedule=schedule(wait=_STEPS_BEFORE_PROFILE, warmup=1, active=num_steps, repeat=1),
        on_trace_ready=tensorboard_trace_handler(folder, f"rank-{own_rank()}", use_gzip=True),
        profile_memory=True,
    ) as profiler:
        yield profiler


def _loader(first: Trainer, step: int) -> Iterator[Batch]:
    config = first.config
    loader = first.batches.loader(step * config.accumulate, num_workers=config.data.num_workers)
    return iter(loader)


def _fetch(
    batches: Iterator[Batch], step: int, trainers: Sequence[Trainer], stop: StopRequest
) -> list[Batch]:
    """Get the micro-batches of a step, on the device."""
    config, device = trainers[0].config, trainers[0].parallel.device
    try:
        fetched = [move(batch, device) for batch in islice(batches, config.accumulate)]
    except RuntimeError:
        # A signal to the whole process group also ends the worker processes of the loader.
        if stop.is_requested and num_ranks() == 1:
            _save_all(trainers, step)
            raise Stopped(step) from None
        raise
    if len(fetched) < config.accumulate:
        raise ValueError(f"the data ends after {step} of {config.num_steps} steps")
    return fetched


def _must_save(step: int, trainers: Sequence[Trainer], stop: StopRequest, *, is_late: bool) -> bool:
    """Whether a checkpoint is due by the clock of rank 0; all ranks get the same answer.

    Raises:
        Stopped: A rank was asked to stop; all ranks have saved.
    """
    asked = [int(stop.is_requested), int(is_late and is_first_rank())]
    stops, saves = sum_over_ranks(asked)
    if stops:
        _save_all(trainers, step)
        raise Stopped(step)
    return saves > 0


def _save_all(trainers: Sequence[Trainer], step: int) -> None:
    for trainer in trainers:
        trainer.save(step)


def _progress_bar(first: Trainer, done: int) -> Progress:
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TimeRemainingColumn(),
        refresh_per_second=1,
        disable=not is_first_rank(),
    )
    bar.add_task(first.config.name, total=first.config.num_steps, completed=done, loss="")
    return bar
