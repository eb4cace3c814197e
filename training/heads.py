"""The prototype head of self-distillation, and the scalars of the patch-name contrast.

Shapes: ... any leading sizes, D width, K prototypes.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.distributed import mean_over_ranks


class PrototypeHead(nn.Module):
    """MLP to a bottleneck on the unit sphere, then cosines with learnt prototypes.

    TIPSv2 does not publish its head; this is DINO's (arXiv:2104.14294) with one hidden layer and
    few prototypes, for small students.
    """

    def __init__(self, dim: int, *, hidden: int, bottleneck: int, num_prototypes: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, bottleneck))
        self.prototypes = nn.Parameter(torch.empty(num_prototypes, bottleneck))
        nn.init.normal_(self.prototypes, std=0.02)

    def forward(self, tokens_D: Tensor) -> Tensor:
        """Cosines [..., K] of tokens [..., D] with the prototypes."""
        bottleneck = F.normalize(self.mlp(tokens_D).float(), dim=-1)
        return bottleneck @ F.normalize(self.prototypes.float(), dim=-1).T


class Centering(nn.Module):
    """Turns teacher cosines into assignments: subtract a running mean, sharpen, softmax.

    The centre keeps one prototype from taking everything, the sharpening keeps the assignment
    from becoming uniform (DINO, arXiv:2104.14294).
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


class NameContrast(nn.Module):
    """Learnt scale and "nothing" logit of the patch-name contrast."""

    def __init__(self, *, initial_scale: float = 12.0) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(initial_scale)))
        self.nothing = nn.Parameter(torch.tensor(4.0))

    def scale(self) -> Tensor:
        """Positive factor on cosines, at most 60."""
        return self.log_scale.exp().clamp(max=60.0)
