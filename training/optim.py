"""Optimizers and the learning-rate schedule: Muon for hidden matrices, AdamW for the rest."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
    """How parameters are updated.

    Attributes:
        muon_lr: Peak learning rate of hidden matrices (scaled to AdamW's update size).
        adamw_lr: Peak learning rate of the rest: embeddings, norms, biases, heads' prototypes.
        weight_decay: Decoupled, on matrices.
        warmup_steps: Linear.
        clip_norm: Largest norm of the whole gradient.

    TIPSv2 trained with Adafactor at a rate that is not published; Muon took half the steps to the
    same loss in small runs.
    """

    muon_lr: float = 3e-3
    adamw_lr: float = 1.5e-3
    weight_decay: float = 0.02
    warmup_steps: int = 100
    clip_norm: float = 1.0


def build_optimizers(
    modules: Sequence[nn.Module], config: OptimConfig
) -> tuple[torch.optim.Optimizer, ...]:
    """Split the trainable parameters of some modules between Muon and AdamW."""
    matrices: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for module in modules:
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            is_table = any(word in name for word in ("embedding", "prototypes", "token"))
            if parameter.ndim == 2 and not is_table:
                matrices.append(parameter)
            else:
                (decayed if parameter.ndim > 1 else plain).append(parameter)
    muon = torch.optim.Muon(
        matrices,
        lr=config.muon_lr,
        weight_decay=config.weight_decay,
        momentum=0.95,
        adjust_lr_fn="match_rms_adamw",
    )
    adamw = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ],
        lr=config.adamw_lr,
        betas=(0.9, 0.98),
    )
    return muon, adamw


def learning_rate_factor(step: int, *, num_steps: int, warmup_steps: int) -> float:
    """Share of the peak rate at a step: linear warm-up, then a cosine to 1 % at the last step."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
