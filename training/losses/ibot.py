"""Patch-level self-distillation: iBOT (masked patches only) and iBOT++ (masked and visible alike).

Shapes: B batch, N patches.
"""

from typing import Literal

import torch
from torch import Tensor

Supervised = Literal["all", "masked"]


def ibot_loss(loss_BN: Tensor, masked_BN: Tensor, supervised: Supervised) -> Tensor:
    """Mean loss of the counted patches, which the student predicts from the masked view.

    The paper writes a sum. With the mean, the loss weight has the same meaning for both kinds and
    for all image sizes.

    Args:
        loss_BN: Of `token_losses`; the teacher's assignments are those of the whole view.
        masked_BN: bool; the masked patches.
        supervised: "all" is iBOT++, "masked" is iBOT.

    Returns:
        Scalar. float32.

    Raises:
        ValueError: The sizes differ.

    Source: iBOT, arXiv:2111.07832; iBOT++, TIPSv2, arXiv:2604.12012.
    """
    if masked_BN.shape != loss_BN.shape:
        raise ValueError("masked_BN must have one value per patch")
    return loss_BN.mean() if supervised == "all" else loss_BN[masked_BN].mean()


@torch.no_grad()
def loss_by_visibility(loss_BN: Tensor, masked_BN: Tensor) -> dict[str, Tensor]:
    """Mean loss of visible and of masked patches, for the log.

    iBOT does not train the loss of visible patches; the paper gives that as the reason for iBOT++.

    Args:
        loss_BN: As above.
        masked_BN: bool; the same number in each image.

    Returns:
        "patch_visible" and "patch_masked"; a kind without patches is left out.
    """
    parts = {"patch_visible": loss_BN[~masked_BN], "patch_masked": loss_BN[masked_BN]}
    return {name: part.mean() for name, part in parts.items() if len(part)}
