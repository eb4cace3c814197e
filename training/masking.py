"""Chooses which patches of an image a student may not see.

Shapes: G images of the global batch, B of one rank, N patches.
"""

import torch
from torch import Tensor


def random_masks(
    batch: int,
    num_patches: int,
    ratio: float,
    generator: torch.Generator,
    *,
    rows: slice | None = None,
) -> Tensor:
    """Mask the same number of patches of each image, uniformly at random.

    Args:
        batch: G.
        num_patches: N.
        ratio: Share to mask, 0 to 1.
        generator: Source of the choice, on the CPU. It moves on by the whole batch, so that ranks
            which ask for different rows of one batch stay together.
        rows: Which images' masks to return; None for all.

    Returns:
        bool [B, N].

    Raises:
        ValueError: The ratio is outside 0..1.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"the mask ratio must lie in 0..1, not {ratio}")
    noise_GN = torch.rand(batch, num_patches, generator=generator)
    order_BN = (noise_GN if rows is None else noise_GN[rows]).argsort(dim=1)
    return order_BN < round(ratio * num_patches)
