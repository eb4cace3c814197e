"""Optimizers, gradient clipping and the learning-rate schedule.

Works on ordinary tensors and on those that FSDP2 shards over the ranks.

Shapes: R C the last two axes of a parameter; the axes before them are a stack of matrices.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

_TINY = 1e-30
OptimizerName = Literal["muon", "adamw", "adafactor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
    """Optimizer settings.

    Attributes:
        optimizer: "muon" is Muon for hidden matrices and AdamW for the rest; in small runs it took
            half the steps of AdamW to the same loss. TIPSv2 used "adafactor", with unpublished
            settings.
        muon_lr: Peak learning rate of hidden matrices (scaled to AdamW's update size).
        adamw_lr: Peak learning rate of the rest (embeddings, norms, biases, prototypes), and of
            everything with "adamw".
        adafactor_lr: Peak learning rate with "adafactor". Not published; 1e-3 is that of Scaling
            Vision Transformers (arXiv:2106.04560) for ViTs.
        weight_decay: Decoupled, on matrices.
        warmup_steps: Of the linear warm-up.
        clip_norm: Largest norm of the whole gradient.
        final_lr_share: Share of the peak rate at the end of the cosine. Not published.
        adafactor_momentum: Of the clipped updates. Not published, like the next two; the defaults
            are those of Scaling Vision Transformers.
        adafactor_max_decay: Upper bound of the decay of Adafactor's second moments.
        adafactor_max_rms: Root mean square to which Adafactor scales down larger updates.

    Fields with repr=False were added later: `reproduce` identifies its finished runs by the repr.
    """

    optimizer: OptimizerName = "muon"
    muon_lr: float = 3e-3
    adamw_lr: float = 1.5e-3
    adafactor_lr: float = 1e-3
    weight_decay: float = 0.02
    warmup_steps: int = 100
    clip_norm: float = 1.0
    final_lr_share: float = field(default=0.01, repr=False)
    adafactor_momentum: float = field(default=0.9, repr=False)
    adafactor_max_decay: float = field(default=0.999, repr=False)
    adafactor_max_rms: float = field(default=1.0, repr=False)

    def __post_init__(self) -> None:
        """Check what no type checks at run time."""
        if self.optimizer not in get_args(OptimizerName):
            raise ValueError(f"optim.optimizer must be one of {get_args(OptimizerName)}")
        if self.clip_norm <= 0:
            raise ValueError("optim.clip_norm must be above 0; 1e9 never clips")
        if not 0 <= self.final_lr_share <= 1:
            raise ValueError("optim.final_lr_share is a share of the peak rate, 0 to 1")


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
    if config.optimizer == "adafactor":
        groups = _groups(everything, config.weight_decay)
        return (
            Adafactor(
                groups,
                lr=config.adafactor_lr,
                momentum=config.adafactor_momentum,
                max_decay=config.adafactor_max_decay,
                max_rms=config.adafactor_max_rms,
            ),
        )
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


def learning_rate_factor(
    step: int, *, num_steps: int, warmup_steps: int, final_share: float = 0.01
) -> float:
    """Share of the peak rate at a step: linear warm-up, then a cosine to the final share."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return final_share + (1 - final_share) * cosine


def _norms(gradients: Sequence[Tensor]) -> Iterator[Tensor]:
    """Norms of ordinary and of sharded gradients, which torch cannot combine."""
    for is_cut in (False, True):
        part = [gradient for gradient in gradients if isinstance(gradient, DTensor) == is_cut]
        if part:
            norm = torch.nn.utils.get_total_norm(part)
            yield norm.full_tensor() if isinstance(norm, DTensor) else norm


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> float:
    """Scale all gradients by one factor so that their joint norm is at most `max_norm`, in place.

    Returns:
        The norm before scaling. If it is infinite or NaN, nothing is scaled.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return 0.0
    norm = float(torch.stack(list(_norms(gradients))).norm())
    if math.isfinite(norm) and norm > max_norm:
        for is_cut in (False, True):
            part = [gradient for gradient in gradients if isinstance(gradient, DTensor) == is_cut]
            if part:
                torch._foreach_mul_(part, max_norm / norm)
    return norm


class Adafactor(torch.optim.Optimizer):
    """Adafactor with momentum in float32, for parameters that FSDP2 may shard.

    Those of torch and transformers cannot update sharded parameters: one squares norms in place
    that are still spread over the ranks, the other adds ordinary tensors to sharded ones (torch
    2.13, transformers 5.24). The settings are those of Scaling Vision Transformers
    (arXiv:2106.04560, section 3.4), the last published ones for ViTs: momentum 0.9, no scaling by
    the parameter's size, decay of the second moments capped at 0.999.

    Args:
        params: Parameters, or groups of them.
        lr: Size of a step, before clipping by `max_rms`.
        momentum: Of the clipped updates.
        max_decay: The second moments' decay is 1 - step ** -0.8, but at most this.
        max_rms: Root mean square above which an update is scaled down to it.
        weight_decay: Decoupled.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float = 1e-3,
        momentum: float = 0.9,
        max_decay: float = 0.999,
        max_rms: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "max_decay": max_decay,
            "max_rms": max_rms,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None, "Adafactor takes no closure"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        gradient, state = cast("Tensor", parameter.grad), self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["momentum"] = torch.zeros_like(gradient)
        state["step"] += 1
        decay = min(group["max_decay"], 1 - float(state["step"]) ** -0.8)
        update = gradient * _inverse_root(gradient, state, decay)
        rms = update.square().mean().sqrt()
        update = _cut_like(update / (rms / group["max_rms"]).clamp(min=1.0), parameter)
        state["momentum"].lerp_(update, 1 - group["momentum"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(state["momentum"], alpha=-group["lr"])


def _cut_like(value: Tensor, parameter: Tensor) -> Tensor:
    """Shard a value like its parameter; ordinary tensors are returned unchanged."""
    if isinstance(value, DTensor) and isinstance(parameter, DTensor):
        return value.redistribute(placements=parameter.placements)
    return value


def _inverse_root(gradient: Tensor, state: dict[str, Any], decay: float) -> Tensor:
    """Update the second moments and return 1 / their root, of the gradient's shape.

    The moments are replaced, not changed in place: a mean along a sharded axis is sharded
    differently from the moment that it is added to.
    """
    squares = gradient.square() + _TINY
    if gradient.ndim < 2:
        state["variance"] = _moved(state.get("variance"), squares, decay)
        return cast("Tensor", state["variance"].rsqrt())
    state["rows_R1"] = _moved(state.get("rows_R1"), squares.mean(-1, keepdim=True), decay)
    state["columns_1C"] = _moved(state.get("columns_1C"), squares.mean(-2, keepdim=True), decay)
    mean_11 = state["rows_R1"].mean(-2, keepdim=True)
    return cast("Tensor", (state["rows_R1"] / mean_11).rsqrt() * state["columns_1C"].rsqrt())


def _moved(average: Tensor | None, values: Tensor, decay: float) -> Tensor:
    if isinstance(values, DTensor):
        whole = [Replicate() if place.is_partial() else place for place in values.placements]
        values = values.redistribute(placements=whole)
    return values * (1 - decay) if average is None else average * decay + values * (1 - decay)
