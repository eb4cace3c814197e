"""What a student learns from a teacher: assignments to prototypes, or the teacher's own space.

Assignments are made of cosines with prototypes, in three kinds, because TIPSv2 says only that it
centres and sharpens: centering, Sinkhorn-Knopp, and a plain softmax. Nothing here has a gradient.

The assignments of all patches of a batch to all prototypes would be the largest tensor of a step.
`of_tokens` puts them off: a loss asks for those of some tokens at a time. Sinkhorn-Knopp balances
all tokens at once, so it cannot.

Shapes: ... any leading sizes, K prototypes or known names, T tokens or the teacher's width, F width
of the head's bottleneck, D the student's width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.distributed import logsumexp_over_ranks, mean_over_ranks
from training.losses.distillation import chunks_of
from training.losses.precision import without_autocast
from training.losses.sinkhorn import sinkhorn_knopp

TargetKind = Literal["centering", "sinkhorn", "softmax"]
TokenTargets = tuple[Tensor, Callable[[Tensor], Tensor]]
"""Rows, one a token, and the function that turns some of them into assignments."""


class Targets(nn.Module, ABC):
    """A way to turn cosines into assignments."""

    @abstractmethod
    def forward(self, cosines_K: Tensor) -> Tensor:
        """Assignments of the same shape."""

    @abstractmethod
    def of_tokens(self, features_TF: Tensor, prototypes_KF: Tensor) -> TokenTargets:
        """The assignments of a head's features, put off."""


def _cosines(features_TF: Tensor, prototypes_KF: Tensor) -> Tensor:
    with without_autocast(features_TF):
        return features_TF @ prototypes_KF.T


class Centering(Targets):
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
    def forward(self, cosines_K: Tensor) -> Tensor:
        """Assignments of the same shape; the centre moves while training."""
        probs_K = ((cosines_K.float() - self.centre_K) / self.temperature).softmax(-1)
        if self.training:
            self._move(cosines_K.float().flatten(0, -2).mean(0))
        return probs_K

    @torch.no_grad()
    def of_tokens(self, features_TF: Tensor, prototypes_KF: Tensor) -> TokenTargets:
        """By the centre as it is now; it moves while training."""
        centre_K = self.centre_K.clone()

        def assign(features_SF: Tensor) -> Tensor:
            cosines_SK = _cosines(features_SF, prototypes_KF)
            return cosines_SK.sub_(centre_K).div_(self.temperature).softmax(-1)

        if self.training:  # the mean of cosines is the cosine of the mean
            self._move(_cosines(features_TF.mean(0), prototypes_KF))
        return features_TF, assign

    def _move(self, mean_K: Tensor) -> None:
        self.centre_K.lerp_(mean_over_ranks(mean_K), 1 - self.momentum)


class Sinkhorn(Targets):
    """Balances the assignments over the tokens of all ranks; has no state."""

    def __init__(self, *, temperature: float, num_iterations: int = 3) -> None:
        super().__init__()
        self.temperature, self.num_iterations = temperature, num_iterations

    @torch.no_grad()
    def forward(self, cosines_K: Tensor) -> Tensor:
        """Assignments of the same shape."""
        flat_NK = cosines_K.float().flatten(0, -2) / self.temperature
        probs_NK = sinkhorn_knopp(
            flat_NK, num_iterations=self.num_iterations, over_ranks=logsumexp_over_ranks
        )
        return probs_NK.view_as(cosines_K)

    @torch.no_grad()
    def of_tokens(self, features_TF: Tensor, prototypes_KF: Tensor) -> TokenTargets:
        """Nothing is put off."""
        return self(_cosines(features_TF, prototypes_KF)), _assigned


def _assigned(probs_SK: Tensor) -> Tensor:
    return probs_SK


class Softmax(Targets):
    """Sharpens only; one prototype may take all tokens."""

    def __init__(self, *, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    @torch.no_grad()
    def forward(self, cosines_K: Tensor) -> Tensor:
        """Assignments of the same shape."""
        return (cosines_K.float() / self.temperature).softmax(-1)

    @torch.no_grad()
    def of_tokens(self, features_TF: Tensor, prototypes_KF: Tensor) -> TokenTargets:
        """See `Targets`."""
        return features_TF, lambda features_SF: self(_cosines(features_SF, prototypes_KF))


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


def build_targets(
    kind: TargetKind, *, num_prototypes: int, temperature: float, momentum: float
) -> Targets:
    """Build one of the three; `momentum` is the centre's."""
    if kind == "centering":
        return Centering(num_prototypes, temperature=temperature, momentum=momentum)
    return (
        Sinkhorn(temperature=temperature)
        if kind == "sinkhorn"
        else Softmax(temperature=temperature)
    )


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
