"""What a student learns from a teacher, which may be its own moving average.

Assignments are made of cosines with prototypes: TIPSv2 says that it centres and sharpens, and so
does DINO. Nothing here has a gradient.

The assignments of all patches of a batch to all prototypes would be the largest tensor of a step.
They are put off: a loss asks for those of some tokens at a time.

Shapes: B batch, N patches, K prototypes or known names, T tokens or the teacher's width, S some
tokens, F width of the head's bottleneck, D the student's width.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.distributed import mean_over_ranks
from training.heads import PrototypeHead
from training.losses.distillation import chunks_of
from training.losses.precision import without_autocast

TokenTargets = tuple[Tensor, Callable[[Tensor], Tensor]]
"""Rows, one a token, and the function that turns some of them into assignments."""


def _cosines(features_TF: Tensor, prototypes_KF: Tensor) -> Tensor:
    with without_autocast(features_TF):
        return features_TF @ prototypes_KF.T


class Centering(nn.Module):
    """Turns teacher cosines into assignments: subtract a running mean, sharpen, softmax.

    The centre keeps one prototype from taking all tokens, the sharpening keeps the assignment from
    becoming uniform (DINO, arXiv:2104.14294). The mean is over all ranks.
    """

    def __init__(self, num_prototypes: int, *, temperature: float, momentum: float = 0.9) -> None:
        super().__init__()
        self.temperature, self.momentum = temperature, momentum
        self.centre_K: Tensor
        self.register_buffer("centre_K", torch.zeros(num_prototypes))

    @torch.no_grad()
    def forward(self, features_TF: Tensor, prototypes_KF: Tensor) -> TokenTargets:
        """By the centre as it is now; it moves while training."""
        centre_K = self.centre_K.clone()

        def assign(features_SF: Tensor) -> Tensor:
            cosines_SK = _cosines(features_SF, prototypes_KF)
            return cosines_SK.sub_(centre_K).div_(self.temperature).softmax(-1)

        if self.training:  # the mean of cosines is the cosine of the mean
            mean_K = _cosines(features_TF.mean(0), prototypes_KF)
            self.centre_K.lerp_(mean_over_ranks(mean_K), 1 - self.momentum)
        return features_TF, assign


@torch.no_grad()
def patch_targets(head: PrototypeHead, centering: Centering, patches_BND: Tensor) -> TokenTargets:
    """Assignments of a teacher's patches, image by image."""
    targets: TokenTargets = centering(head.embed(patches_BND).flatten(0, 1), head.directions())
    return targets


@torch.no_grad()
def whole_targets(head: PrototypeHead, centering: Centering, tokens_BD: Tensor) -> Tensor:
    """Assignments [B, K] of a teacher's global tokens."""
    rows, assign = centering(head.embed(tokens_BD), head.directions())
    assigned_BK: Tensor = assign(rows)
    return assigned_BK


@torch.no_grad()
def target_statistics(targets: TokenTargets, num_prototypes: int) -> dict[str, Tensor]:
    """Two signs of a collapse, for the log, over the tokens of all ranks.

    Returns:
        "target_entropy": mean entropy of a token's assignment in nats; 0 if it is certain, ln K if
        it says nothing. "prototypes_used": exp of the entropy of the mean assignment; 1 if all
        tokens have one prototype, K if all prototypes are used alike.
    """
    rows, assign = targets
    entropies, totals = [], []
    for part in chunks_of(rows, num_prototypes):
        probs_SK = assign(part)
        entropies.append(torch.special.entr(probs_SK).sum())
        totals.append(probs_SK.sum(0))
    mean_K = mean_over_ranks(torch.stack(totals).sum(0) / len(rows))
    used = torch.special.entr(mean_K).sum().exp()
    return {"target_entropy": torch.stack(entropies).sum() / len(rows), "prototypes_used": used}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Space:
    """A teacher's space in the width of a student.

    Attributes:
        axes_TD: Orthonormal axes.
    """

    axes_TD: Tensor

    def reduce(self, embeddings_T: Tensor) -> Tensor:
        """Reduce embeddings [..., T] to unit vectors [..., D]."""
        return F.normalize(embeddings_T @ self.axes_TD, dim=-1)


def fit_space(names_KT: Tensor, width: int, start_KD: Tensor | None = None) -> Space:
    """The axes in which the names lie; cosines change least.

    Args:
        names_KT: The names' embeddings by the teacher, at least `width` of them.
        width: D.
        start_KD: The names' embeddings by the network that the student starts from. The axes are
            turned towards them, so that the student need not turn its own space.

    Raises:
        ValueError: Fewer names or numbers than axes.
    """
    if min(names_KT.shape) < width:
        raise ValueError(
            f"{width} axes need as many names and numbers of the teacher, not {names_KT.shape}"
        )
    unit_KT = F.normalize(names_KT, dim=-1)
    axes_TD = torch.linalg.svd(unit_KT, full_matrices=False).Vh[:width].T
    if start_KD is not None:
        left, _, right = torch.linalg.svd((unit_KT @ axes_TD).T @ F.normalize(start_KD, dim=-1))
        axes_TD = axes_TD @ left @ right
    return Space(axes_TD=axes_TD.contiguous())


EmaScope = Literal["head", "full", "none"]

Part = TypeVar("Part", bound=nn.Module)


def averaged_copy(module: Part) -> Part:
    """Copy a module without gradients: the initial value of its moving average."""
    return copy.deepcopy(module).requires_grad_(requires_grad=False)


@torch.no_grad()
def update_ema(average: nn.Module, current: nn.Module, momentum: float) -> None:
    """Move `average` towards `current`: average = momentum * average + (1 - momentum) * current."""
    pairs = zip(average.parameters(), current.parameters(), strict=True)
    averages, currents = zip(*[(a, c.detach()) for a, c in pairs], strict=True)
    torch._foreach_lerp_(list(averages), list(currents), 1 - momentum)
