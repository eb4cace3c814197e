"""One optimizer step: forward and backward of its micro-batches, clip, check, update.

Independent of files and logs.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from training.config import TrainingConfig
from training.data.batch import Batch
from training.distributed import num_ranks, sum_over_ranks
from training.methods.base import Step
from training.methods.terms import contrast_step
from training.optim import clip_gradients, learning_rate_factor
from training.parallel import ParallelMethod, move


class Update:
    """Takes one optimizer step per call.

    The gradient is the mean over a step's micro-batches. Captions are contrasted over all of them
    (see `training.methods.terms`), so twice the micro-batches is the same as twice the batch size,
    except for what is compared within a micro-batch: names, titles and centres.
    """

    def __init__(
        self,
        config: TrainingConfig,
        method: ParallelMethod,
        optimizers: Sequence[torch.optim.Optimizer],
        *,
        rank: int = 0,
    ) -> None:
        self._config, self._method, self._optimizers = config, method, optimizers
        self._rank = rank
        self._trained = [p for o in optimizers for g in o.param_groups for p in g["params"]]
        self._peaks = [[group["lr"] for group in o.param_groups] for o in optimizers]

    def __call__(
        self, batches: Sequence[Batch], step: int, *, is_logged: bool = True
    ) -> dict[str, Tensor]:
        """Take step number `step`.

        Args:
            batches: The step's micro-batches.
            step: Its number, from 0.
            is_logged: Whether values that are only for the log are computed; they make the host
                wait for the device.

        Returns:
            Loss, its parts and the gradient's norm, for this rank's images.

        Raises:
            FloatingPointError: The gradient is not finite on some rank. All ranks raise it, and
                weights and optimizers are unchanged.
        """
        self._set_learning_rates(step)
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        steps = [
            self._step(batch, step, index, is_logged=is_logged)
            for index, batch in enumerate(batches)
        ]
        if len(batches) > 1 and self._method.method.contrasts_captions():
            steps = self._contrast(batches, steps)
        rows = [
            self._accumulate(batch, part, index)
            for index, (batch, part) in enumerate(zip(batches, steps, strict=True))
        ]
        self._method.finish_gradients()
        norm = clip_gradients(self._trained, self._config.optim.clip_norm)
        self._check(norm, step)
        for optimizer in self._optimizers:
            optimizer.step()
        self._method.method.after_step()
        return {**_means(rows), "grad_norm": torch.tensor(norm)}

    def _contrast(self, batches: Sequence[Batch], steps: Sequence[Step]) -> list[Step]:
        """Contrast the captions of all micro-batches; each step gets its share."""
        method, rows = self._method, []
        for batch, step in zip(batches, steps, strict=True):
            with self._autocast():
                rows.append(method.embed_captions(move(batch, method.device), step))
        ids1_T, ids2_T = (
            torch.cat([getattr(batch, name) for batch in batches]).to(method.device)
            for name in ("cls1_ids_T", "cls2_ids_T")
        )
        shares = contrast_step(rows, ids1_T, ids2_T, method.method.log_temperature)
        if shares is None:
            return list(steps)
        return [replace(step, contrast=part) for step, part in zip(steps, shares, strict=True)]

    def _accumulate(self, batch: Batch, step: Step, index: int) -> dict[str, Tensor]:
        """Forward and backward of one micro-batch."""
        config = self._config
        batch = move(batch, self._method.device)
        with self._method.accumulating(is_last=index + 1 == config.accumulate):
            with self._autocast():
                loss, metrics = self._method(batch, step)
            (loss / config.accumulate).backward()
        return {"loss": loss.detach().float(), **{n: m.float() for n, m in metrics.items()}}

    def _step(self, batch: Batch, step: int, index: int, *, is_logged: bool) -> Step:
        rows = len(batch.pixels_B3HW)
        entropy = np.random.SeedSequence((self._config.seed, step, index))
        seed = int(entropy.generate_state(1, np.uint64)[0])
        return Step(
            progress=step / self._config.num_steps,
            generator=torch.Generator().manual_seed(seed),
            first_row=self._rank * rows,
            global_rows=num_ranks() * rows,
            is_logged=is_logged,
        )

    def learning_rates(self) -> dict[str, Tensor]:
        """The last step's rate of each optimizer, such as "lr_adamw"."""
        return {
            f"lr_{type(optimizer).__name__.lower()}": torch.tensor(optimizer.param_groups[0]["lr"])
            for optimizer in self._optimizers
        }

    def _autocast(self) -> AbstractContextManager[None]:
        if self._config.precision == "float32":
            return nullcontext()
        return torch.autocast(self._method.device.type, dtype=torch.bfloat16)

    def _set_learning_rates(self, step: int) -> None:
        factor = learning_rate_factor(
            step, num_steps=self._config.num_steps, config=self._config.optim
        )
        for optimizer, peaks in zip(self._optimizers, self._peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor

    def _check(self, norm: float, step: int) -> None:
        (bad,) = sum_over_ranks([int(not math.isfinite(norm))])
        if bad:
            raise FloatingPointError(
                f"step {step}: the gradient is not finite; lower the learning rates (optim.muon_lr,"
                " optim.adamw_lr) and resume from the last checkpoint"
            )


def _means(rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Mean of each term over the micro-batches that have it; without captions a term is absent."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: torch.stack([row[name] for row in rows if name in row]).mean() for name in names}
