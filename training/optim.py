"""Optimizers, gradient clipping and the learning-rate schedule.

Works on ordinary tensors and on those that FSDP2 shards over the ranks.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from pydantic import PositiveFloat
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from training.settings import STRICT, Share

Auto = Literal["auto"]
OptimizerName = Literal["muon", "adamw"]


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class OptimConfig:
    """Optimizer settings.

    Attributes:
        optimizer: "muon" is Muon for hidden matrices and AdamW for the rest; in small runs it took
            half the steps of AdamW to the same loss. It computes in bfloat16; "auto" is "adamw"
            where the hardware does not. TIPSv2 used Adafactor, with unpublished settings.
        muon_lr: Peak learning rate of hidden matrices (scaled to AdamW's update size).
        adamw_lr: Peak learning rate of the rest (embeddings, norms, biases, prototypes), and of
            everything with "adamw".
        weight_decay: Decoupled, on matrices.
        warmup_steps: Of the linear warm-up.
        clip_norm: Largest norm of the whole gradient; 1e9 never clips.
        final_lr_share: Share of the peak rate at the end of the cosine. Not published.
        decay_from: Share of the training after which the rate falls. A run that stops earlier can
            continue with more steps.
    """

    optimizer: OptimizerName | Auto = "muon"
    muon_lr: float = 3e-3
    adamw_lr: float = 1.5e-3
    weight_decay: float = 0.02
    warmup_steps: int = 100
    clip_norm: PositiveFloat = 1.0
    final_lr_share: Share = 0.01
    decay_from: Share = 0.0


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is a matrix that maps tokens to tokens, not a table of embeddings."""
    is_table = any(word in name for word in ("embedding", "prototypes", "token"))
    return parameter.ndim == 2 and not is_table


def _groups(parameters: Sequence[nn.Parameter], weight_decay: float) -> list[dict[str, object]]:
    """Decay only matrices. Scalars have their own group, because FSDP2 does not shard them."""
    groups: list[dict[str, object]] = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
        {"params": [p for p in parameters if p.ndim == 0], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _adamw(parameters: Sequence[nn.Parameter], config: OptimConfig) -> torch.optim.Optimizer:
    groups = _groups(parameters, config.weight_decay)
    return torch.optim.AdamW(groups, lr=config.adamw_lr, betas=(0.9, 0.98))


def build_optimizers(
    modules: Sequence[nn.Module], config: OptimConfig
) -> tuple[torch.optim.Optimizer, ...]:
    """Build optimizers such that each trainable parameter belongs to one of them."""
    named = [pair for module in modules for pair in module.named_parameters()]
    trainable = [(name, p) for name, p in named if p.requires_grad]
    everything = [p for _, p in trainable]
    if config.optimizer == "adamw":
        return (_adamw(everything, config),)
    matrices = [p for name, p in trainable if _is_matrix(name, p)]
    rest = [p for name, p in trainable if not _is_matrix(name, p)]
    muon = torch.optim.Muon(
        matrices,
        lr=config.muon_lr,
        weight_decay=config.weight_decay,
        momentum=0.95,
        adjust_lr_fn="match_rms_adamw",
    )
    return muon, _adamw(rest, config)


def learning_rate_factor(step: int, *, num_steps: int, config: OptimConfig) -> float:
    """Share of the peak rate at a step: linear warm-up, constant, then a cosine to the end."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    first = max(config.warmup_steps, config.decay_from * num_steps)
    progress = max(0.0, step - first) / max(1.0, num_steps - first)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.final_lr_share + (1 - config.final_lr_share) * cosine


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> float:
    """Scale all gradients by one factor so that their joint norm is at most `max_norm`, in place.

    Returns:
        The norm before scaling. If it is infinite or NaN, nothing is scaled.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return 0.0
    sharded: list[Tensor] = [g for g in gradients if isinstance(g, DTensor)]  # by FSDP2
    whole = [g for g in gradients if not isinstance(g, DTensor)]
    parts = [part for part in (sharded, whole) if part]
    norms = [nn.utils.get_total_norm(part) for part in parts]
    totals = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    norm = float(torch.stack(totals).norm())
    if math.isfinite(norm) and norm > max_norm:
        for part in parts:
            torch._foreach_mul_(part, max_norm / norm)
    return norm
