"""Patch-level distillation from a frozen teacher: no masking, every patch supervised.

Shapes: B batch, N patches, K prototypes.
"""

from torch import Tensor


def distillation_loss(student_logits_BNK: Tensor, teacher_probs_BNK: Tensor) -> Tensor:
    """Cross-entropy from the frozen teacher's assignments to the student's, mean over all patches.

    Args:
        student_logits_BNK: Head outputs, divided by the student temperature.
        teacher_probs_BNK: Rows sum to 1. No gradient flows into them.

    Returns:
        Scalar. float32.

    Raises:
        ValueError: The sizes differ.

    Source: TIPSv2, arXiv:2604.12012: when distilling, the patch loss masks nothing and takes all.
    """
    if student_logits_BNK.shape != teacher_probs_BNK.shape:
        raise ValueError("student and teacher must have the same patches and prototypes")
    log_probs_BNK = student_logits_BNK.float().log_softmax(-1)
    return -(teacher_probs_BNK.detach() * log_probs_BNK).sum(-1).mean()
