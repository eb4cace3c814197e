"""Patch-level self-distillation: iBOT (masked patches only) and iBOT++ (masked and visible alike).

Shapes: B batch, N patches, K prototypes.
"""

from typing import Literal

import torch
from torch import Tensor

from training.losses.distillation import distillation_loss
from training.losses.reduction import Normalization

Supervised = Literal["all", "masked"]


def ibot_loss(
    student_logits_BNK: Tensor,
    teacher_probs_BNK: Tensor,
    masked_BN: Tensor,
    supervised: Supervised,
    *,
    normalization: Normalization = "mean",
) -> Tensor:
    """Cross-entropy from the teacher's assignments to the student's predictions.

    Args:
        student_logits_BNK: Head outputs of the masked view, divided by the student temperature.
        teacher_probs_BNK: Of the whole view; rows sum to 1. No gradient flows into them.
        masked_BN: bool; the masked patches.
        supervised: "all" is iBOT++, "masked" is iBOT.
        normalization: The paper writes a sum. With the mean over the counted patches, the loss
            weight has the same meaning for both kinds and for all image sizes.

    Returns:
        Scalar. float32.

    Raises:
        ValueError: The sizes differ.

    Source: iBOT, arXiv:2111.07832; iBOT++, TIPSv2, arXiv:2604.12012.
    """
    if masked_BN.shape != student_logits_BNK.shape[:-1]:
        raise ValueError("masked_BN must have one value per patch")
    return distillation_loss(
        student_logits_BNK,
        teacher_probs_BNK,
        None if supervised == "all" else masked_BN,
        normalization=normalization,
    )


@torch.no_grad()
def loss_by_visibility(
    student_logits_BNK: Tensor, teacher_probs_BNK: Tensor, masked_BN: Tensor
) -> dict[str, Tensor]:
    """Mean loss of visible and of masked patches, for the log.

    iBOT does not train the loss of visible patches; the paper gives that as the reason for iBOT++.

    Args:
        student_logits_BNK: As above.
        teacher_probs_BNK: As above.
        masked_BN: bool; the same number in each image.

    Returns:
        "patch_visible" and "patch_masked"; a kind without patches is left out.
    """
    log_probs_BNK = student_logits_BNK.float().log_softmax(-1)
    loss_BN = -(teacher_probs_BNK * log_probs_BNK).sum(-1)
    parts = {"patch_visible": loss_BN[~masked_BN], "patch_masked": loss_BN[masked_BN]}
    return {name: part.mean() for name, part in parts.items() if len(part)}
