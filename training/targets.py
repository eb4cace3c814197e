"""Turns a teacher's cosines with prototypes into the assignments that a student predicts.

Three kinds, because TIPSv2 says only that it centres and sharpens: centering, Sinkhorn-Knopp, and a
plain softmax. None of them has a gradient.

Shapes: ... any leading sizes, K prototypes.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from training.distributed import logsumexp_over_ranks, mean_over_ranks
from training.losses.sinkhorn import sinkhorn_knopp

TargetKind = Literal["centering", "sinkhorn", "softmax"]


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
    def forward(self, cosines_K: Tensor) -> Tensor:
        """Assignments of the same shape; the centre moves while training."""
        probs_K = ((cosines_K.float() - self.centre_K) / self.temperature).softmax(-1)
        if self.training:
            mean_K = mean_over_ranks(cosines_K.float().flatten(0, -2).mean(0))
            self.centre_K.lerp_(mean_K, 1 - self.momentum)
        return probs_K


class Sinkhorn(nn.Module):
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


class Softmax(nn.Module):
    """Sharpens only; one prototype may take all tokens."""

    def __init__(self, *, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    @torch.no_grad()
    def forward(self, cosines_K: Tensor) -> Tensor:
        """Assignments of the same shape."""
        return (cosines_K.float() / self.temperature).softmax(-1)


@torch.no_grad()
def target_statistics(probs_K: Tensor) -> dict[str, Tensor]:
    """Two signs of a collapse, for the log, over the tokens of all ranks.

    Returns:
        "target_entropy": mean entropy of a token's assignment in nats; 0 if it is certain, ln K if
        it says nothing. "prototypes_used": exp of the entropy of the mean assignment; 1 if all
        tokens have one prototype, K if all prototypes are used alike.
    """
    entropy = torch.special.entr(probs_K).sum(-1).mean()
    mean_K = mean_over_ranks(probs_K.flatten(0, -2).mean(0))
    used = torch.special.entr(mean_K).sum().exp()
    return {"target_entropy": entropy, "prototypes_used": used}


def build_targets(
    kind: TargetKind, *, num_prototypes: int, temperature: float, momentum: float
) -> nn.Module:
    """Build one of the three; `momentum` is the centre's."""
    if kind == "centering":
        return Centering(num_prototypes, temperature=temperature, momentum=momentum)
    return (
        Sinkhorn(temperature=temperature)
        if kind == "sinkhorn"
        else Softmax(temperature=temperature)
    )
