"""The prototype head of self-distillation, and the scalars of the patch-name contrast.

Shapes: ... any leading sizes, D width, K prototypes.
"""

import itertools
import math

import torch
from pydantic import PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from training.losses.precision import without_autocast
from training.settings import STRICT, Share


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class HeadConfig:
    """Shape, temperatures and averaging of a prototype head.

    TIPSv2 publishes none of these; TIPS is said to have had 32k prototypes. The shape is DINO's
    (arXiv:2104.14294, arXiv:2304.07193), which matches the published saving of head-only averaging;
    the temperatures and the momentum are those that worked in small runs.

    Attributes:
        layers: Linear layers before the prototypes.
        hidden: Width between them.
        bottleneck: Width in which tokens and prototypes are compared.
        num_prototypes: K.
        student_temperature: Divides the student's cosines.
        teacher_temperature: Divides the teacher's; the lower, the sharper its assignments.
        centre_momentum: Of the running mean that centering subtracts; DINO's value.
        ema_momentum: Of the head's moving average.
    """

    layers: PositiveInt = 3
    hidden: int = 2048
    bottleneck: int = 256
    num_prototypes: int = 32768
    student_temperature: PositiveFloat = 0.1
    teacher_temperature: PositiveFloat = 0.06
    centre_momentum: Share = 0.9
    ema_momentum: Share = 0.99

    def build(self, dim: int) -> "PrototypeHead":
        """Build a head for tokens of width `dim`."""
        return PrototypeHead(
            dim,
            hidden=self.hidden,
            bottleneck=self.bottleneck,
            num_prototypes=self.num_prototypes,
            layers=self.layers,
        )


# For students of a few million parameters and some hundred concepts.
SMALL_HEAD = HeadConfig(layers=2, hidden=384, bottleneck=96, num_prototypes=512)


class PrototypeHead(nn.Module):
    """MLP to a bottleneck on the unit sphere, then cosines with learnt prototypes (DINO's head)."""

    def __init__(
        self, dim: int, *, hidden: int, bottleneck: int, num_prototypes: int, layers: int = 2
    ) -> None:
        super().__init__()
        widths = [dim, *[hidden] * (layers - 1), bottleneck]
        parts: list[nn.Module] = []
        for width_in, width_out in itertools.pairwise(widths):
            parts += [nn.Linear(width_in, width_out), nn.GELU()]
        self.mlp = nn.Sequential(*parts[:-1])
        self.prototypes = nn.Parameter(torch.empty(num_prototypes, bottleneck))
        nn.init.normal_(self.prototypes, std=0.02)

    def embed(self, tokens_D: Tensor) -> Tensor:
        """Tokens [..., D] on the unit sphere of the bottleneck, float32."""
        return F.normalize(self.mlp(tokens_D).float(), dim=-1)

    def directions(self) -> Tensor:
        """The prototypes on the same sphere, float32, one a row."""
        return F.normalize(self.prototypes.float(), dim=-1)

    def forward(self, tokens_D: Tensor) -> Tensor:
        """Cosines [..., K] of tokens [..., D] with the prototypes, float32."""
        bottleneck = self.embed(tokens_D)
        with without_autocast(bottleneck):
            return bottleneck @ self.directions().T


class NameContrast(nn.Module):
    """Learnt scale and "nothing" logit of the patch-name contrast."""

    def __init__(self, *, initial_scale: float = 12.0) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(initial_scale)))
        self.nothing = nn.Parameter(torch.tensor(4.0))

    def scale(self) -> Tensor:
        """Positive factor on cosines, at most 60."""
        return self.log_scale.exp().clamp(max=60.0)
