"""Chooses the masked patches of images.

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
        generator: Source of randomness, on the CPU. It advances by the whole batch, so that it
            stays equal on ranks that take different rows of one batch.
        rows: Images whose masks are returned; None for all.

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
