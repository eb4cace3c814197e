"""Chooses which patches of a picture a student may not see.

Shapes: B batch, N patches.
"""

import torch
from torch import Tensor


def random_masks(batch: int, num_patches: int, ratio: float, generator: torch.Generator) -> Tensor:
    """Mask the same number of patches of each picture, uniformly at random.

    Args:
        batch: B.
        num_patches: N.
        ratio: Share to mask, 0 to 1.
        generator: Source of the choice, on the CPU.

    Returns:
        bool [B, N].

    Raises:
        ValueError: The ratio is outside 0..1.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"the mask ratio must lie in 0..1, not {ratio}")
    order_BN = torch.rand(batch, num_patches, generator=generator).argsort(dim=1)
    return order_BN < round(ratio * num_patches)
