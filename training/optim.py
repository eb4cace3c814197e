"""Optimizers, gradient clipping and the learning-rate schedule.

Works on ordinary tensors and on those that FSDP2 shards over the ranks.

Shapes: R C the last two axes of a parameter; the axes before them are a stack of matrices.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

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
        decay_from: Share of the training after which the rate falls. A run that stops earlier can
            continue with more steps.
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
    decay_from: float = field(default=0.0, repr=False)
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
        if not 0 <= self.decay_from <= 1:
            raise ValueError("optim.decay_from is a share of the training, 0 to 1")


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


def learning_rate_factor(step: int, *, num_steps: int, config: OptimConfig) -> float:
    """Share of the peak rate at a step: linear warm-up, constant, then a cosine to the end."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    first = max(config.warmup_steps, config.decay_from * num_steps)
    progress = max(0.0, step - first) / max(1.0, num_steps - first)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.final_lr_share + (1 - config.final_lr_share) * cosine


def _local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, without a copy; an ordinary tensor is its own part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _sum_over_shards(values: Tensor, sharded: DTensor) -> None:
    """Add up values over the ranks that share `sharded`, in place, in one exchange."""
    for axis, place in enumerate(sharded.placements):
        if place.is_shard():
            dist.all_reduce(values, group=sharded.device_mesh.get_group(axis))


def _total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The joint norm of ordinary and of sharded gradients."""
    squares = []
    for is_cut in (False, True):
        part = [gradient for gradient in gradients if isinstance(gradient, DTensor) == is_cut]
        if part:
            norms = torch._foreach_norm([_local(gradient) for gradient in part])
            squares.append(torch.stack(norms).square().sum())
            if isinstance(part[0], DTensor):
                _sum_over_shards(squares[-1], part[0])
    return torch.stack(squares).sum().sqrt()


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> float:
    """Scale all gradients by one factor so that their joint norm is at most `max_norm`, in place.

    Returns:
        The norm before scaling. If it is infinite or NaN, nothing is scaled.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return 0.0
    norm = float(_total_norm(gradients))
    if math.isfinite(norm) and norm > max_norm:
        torch._foreach_mul_([_local(gradient) for gradient in gradients], max_norm / norm)
    return norm


class Adafactor(torch.optim.Optimizer):
    """Adafactor with momentum in float32, for parameters that FSDP2 may shard.

    Parameters of one shape are updated together, each rank's parts by ordinary operators: sharded
    operators cost the host ten times as much time a tensor as plain ones.

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
        """Update every parameter that has a gradient; sharded ones exchange sums once."""
        assert closure is None, "Adafactor takes no closure"
        cut = []
        for group in self.param_groups:
            for parameters in _of_one_kind(group["params"], self.state):
                stack = _Stack(parameters, [self.state[p] for p in parameters], group)
                if isinstance(parameters[0], DTensor):
                    cut.append(stack)
                else:
                    stack.apply(stack.local_sums_SF)
        if cut:
            flat = torch.cat([stack.local_sums_SF.flatten() for stack in cut])
            _sum_over_shards(flat, cast("DTensor", cut[0].parameters[0]))
            parts = flat.split([stack.local_sums_SF.numel() for stack in cut])
            for stack, sums in zip(cut, parts, strict=True):
                stack.apply(sums.view_as(stack.local_sums_SF))


def _of_one_kind(
    parameters: Iterable[Tensor], states: Mapping[Tensor, dict[str, Any]]
) -> list[list[Tensor]]:
    """Group the parameters with a gradient by shape and by the number of steps they have had."""
    kinds: dict[Any, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is None:
            continue
        state = states[parameter]
        if not state:
            state |= _new_state(parameter)
        places = parameter.placements if isinstance(parameter, DTensor) else None
        kind = (parameter.shape, parameter.dtype, parameter.device, places, float(state["step"]))
        kinds.setdefault(kind, []).append(parameter)
    return list(kinds.values())


def _new_state(parameter: Tensor) -> dict[str, Tensor]:
    """Moments of zero, sharded like the parameter; those of a matrix's columns are replicated."""
    momentum = torch.zeros_like(parameter, requires_grad=False)
    state = {"step": torch.zeros(()), "momentum": momentum}
    if parameter.ndim < 2:
        return state | {"variance": torch.zeros_like(momentum)}
    state["rows_R1"] = torch.zeros_like(momentum[..., :1])
    if parameter.ndim > 2:
        return state | {"columns_1C": torch.zeros_like(momentum[..., :1, :])}
    return state | {"columns_1C": _local(momentum).new_zeros((1, parameter.shape[1]))}


class _Stack:
    """Parameters of one shape, updated together; of sharded ones, this rank's parts.

    A mean along a sharded axis takes the sums of all ranks. An update's size takes the means first,
    but is a sum of products in which they can be put in afterwards; so one exchange serves both.

    Shapes: S parameters, F sums of each.

    Attributes:
        parameters: Of one kind.
        local_sums_SF: To be added up over the ranks.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        states: Sequence[dict[str, Any]],
        group: Mapping[str, Any],
    ) -> None:
        self.parameters, self._states, self._group = parameters, states, group
        torch._foreach_add_([state["step"] for state in states], 1)
        self._decay = min(group["max_decay"], 1 - float(states[0]["step"]) ** -0.8)
        self._gradient = torch.stack([_local(cast("Tensor", p.grad)) for p in parameters])
        squares = self._gradient.square()
        # The rows of one matrix may be spread over the ranks, its columns never.
        self._root: Tensor | None = None
        if parameters[0].ndim == 2:
            self._rows_SR1 = self._moved("rows_R1", (squares + _TINY).mean(-1, keepdim=True))
            by_columns = ((squares + _TINY).sum(-2), (squares / self._rows_SR1).sum(-2))
            self.local_sums_SF = torch.cat((*by_columns, self._rows_SR1.sum(-2)), dim=1)
            return
        if parameters[0].ndim > 2:
            rows = self._moved("rows_R1", (squares + _TINY).mean(-1, keepdim=True))
            columns = self._moved("columns_1C", (squares + _TINY).mean(-2, keepdim=True))
            self._root = (rows / rows.mean(-2, keepdim=True)).rsqrt() * columns.rsqrt()
        else:
            self._root = self._moved("variance", squares + _TINY).rsqrt()
        self.local_sums_SF = (self._gradient * self._root).square().view(len(parameters), -1)
        self.local_sums_SF = self.local_sums_SF.sum(1, keepdim=True)

    def _values(self, name: str) -> list[Tensor]:
        return [_local(state[name]) for state in self._states]

    def _moved(self, name: str, values: Tensor) -> Tensor:
        """Move a moment towards values; returns it, stacked."""
        moments = self._values(name)
        moved = torch.stack(moments).mul_(self._decay).add_(values, alpha=1 - self._decay)
        torch._foreach_copy_(moments, list(moved))
        return moved

    def apply(self, sums_SF: Tensor) -> None:
        """Update the parameters with the sums over all ranks."""
        shape = self.parameters[0].shape
        if self._root is not None:
            root, squares_S = self._root, sums_SF[:, 0]
        else:
            columns_SC, weighted_SC, rows_S1 = sums_SF.split((shape[1], shape[1], 1), dim=1)
            columns_S1C = self._moved("columns_1C", columns_SC[:, None] / shape[0])
            mean_S11 = rows_S1[:, :, None] / shape[0]
            root = (self._rows_SR1 / mean_S11).rsqrt() * columns_S1C.rsqrt()
            squares_S = mean_S11[:, 0, 0] * (weighted_SC / columns_S1C[:, 0]).sum(-1)
        group, rms_S = self._group, (squares_S / shape.numel()).sqrt()
        scale_S = (rms_S / group["max_rms"]).clamp(min=1.0).reciprocal()
        update = self._gradient * root * scale_S.view(-1, *[1] * len(shape))
        momenta, own = self._values("momentum"), [_local(p) for p in self.parameters]
        torch._foreach_lerp_(momenta, list(update), 1 - group["momentum"])
        torch._foreach_mul_(own, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(own, momenta, alpha=-group["lr"])
