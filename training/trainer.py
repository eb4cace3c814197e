"""The training loop: step, clip, check, log, validate, save. It knows no method and no loss."""

import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from training.checkpoint import load_checkpoint, save_checkpoint
from training.config import TrainingConfig
from training.data.batch import Batch
from training.distributed import average_gradients, num_ranks
from training.methods.base import Method, Step
from training.optim import build_optimizers, learning_rate_factor

Validate = Callable[[int], dict[str, float]]


class BatchSource(Protocol):
    """What the trainer eats: batch number i is always the same."""

    def loader(self, first_step: int, *, num_workers: int) -> Iterable[Batch]:
        """Iterate from a step on, made ahead in worker processes where there are any."""


class Trainer:
    """Runs a method over batches until the last step, from wherever the run stands."""

    def __init__(
        self,
        config: TrainingConfig,
        method: Method,
        batches: BatchSource,
        *,
        validate: Validate | None = None,
        rank: int = 0,
    ) -> None:
        self._config, self._method, self._batches = config, method, batches
        self._validate, self._rank = validate, rank
        self._folder: Path = config.folder
        self._folder.mkdir(parents=True, exist_ok=True)
        self._optimizers = build_optimizers([method], config.optim)
        self._peaks = [
            [group["lr"] for group in optimizer.param_groups] for optimizer in self._optimizers
        ]

    def train(self, *, until: int | None = None) -> dict[str, float]:
        """Train up to `until` steps (the whole run by default); returns the last logged metrics."""
        done = load_checkpoint(self._folder, method=self._method, optimizers=self._optimizers)
        last = self._config.num_steps if until is None else until
        saved_at, row = time.monotonic(), {}
        self._method.train()
        loader = self._batches.loader(done, num_workers=self._config.data.num_workers)
        with _progress_bar(shown=self._rank == 0) as bar:
            task = bar.add_task(
                self._config.name, total=self._config.num_steps, completed=done, loss=""
            )
            for step, batch in enumerate(loader, start=done):
                if step >= last:
                    break
                metrics = self._step(batch, step)
                bar.update(task, advance=1, loss=f"{metrics['loss']:.3f}")
                if self._is_due(step + 1) or step + 1 == last:
                    row = self._log(step + 1, metrics)
                if time.monotonic() - saved_at > self._config.checkpoint_every_s:
                    self._save(step + 1)
                    saved_at = time.monotonic()
        self._save(max(done, last))
        return row

    def _step(self, batch: Batch, step: int) -> dict[str, float]:
        """One optimizer step; returns the loss and its parts."""
        config = self._config
        factor = learning_rate_factor(
            step, num_steps=config.num_steps, warmup_steps=config.optim.warmup_steps
        )
        for optimizer, peaks in zip(self._optimizers, self._peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            optimizer.zero_grad(set_to_none=True)
        rows = len(batch.pixels_B3HW)
        stands = Step(
            progress=step / config.num_steps,
            generator=torch.Generator().manual_seed(config.seed * 1_000_003 + step * 64),
            first_row=self._rank * rows,
            global_rows=max(num_ranks(), self._rank + 1) * rows,
        )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = self._method(batch, stands)
        result.loss.backward()
        average_gradients(self._method)
        parameters = [p for p in self._method.parameters() if p.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.optim.clip_norm)
        if not math.isfinite(float(norm)):
            raise FloatingPointError(
                f"step {step}: the gradient is not finite; lower optim.muon_lr or optim.adamw_lr "
                "and resume from the last checkpoint"
            )
        for optimizer in self._optimizers:
            optimizer.step()
        self._method.after_step()
        parts = {name: float(value) for name, value in result.metrics.items()}
        return {"loss": float(result.loss.detach()), **parts, "grad_norm": float(norm)}

    def _is_due(self, step: int) -> bool:
        return step % self._config.log_every == 0 or self._validates_at(step)

    def _validates_at(self, step: int) -> bool:
        every = self._config.validate_every
        return every > 0 and (step % every == 0 or step == self._config.num_steps)

    def _log(self, step: int, metrics: dict[str, float]) -> dict[str, float]:
        if self._rank != 0:
            return metrics
        row = {"step": step, **{name: round(value, 5) for name, value in metrics.items()}}
        if self._validate and self._validates_at(step):
            self._method.eval()
            row |= self._validate(step)
            self._method.train()
        row["time_s"] = round(time.time(), 1)
        with (self._folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        return row

    def _save(self, step: int) -> None:
        if self._rank != 0:
            return
        save_checkpoint(self._folder, step=step, method=self._method, optimizers=self._optimizers)


def _progress_bar(*, shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TimeRemainingColumn(),
        refresh_per_second=1,
        disable=not shown,
    )
