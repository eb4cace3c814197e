"""Global self-distillation: prediction from local crops, target from the whole image.

Shapes: C local crops of each image, B batch, K prototypes.
"""

from torch import Tensor


def dino_loss(student_logits_CBK: Tensor, teacher_probs_BK: Tensor) -> Tensor:
    """Cross-entropy from the whole image's assignment to each of its local crops' predictions.

    Args:
        student_logits_CBK: Head outputs of the crops, divided by the student temperature.
        teacher_probs_BK: Of the whole image; rows sum to 1. No gradient flows into them.

    Returns:
        Scalar, mean over images and crops. float32.

    Raises:
        ValueError: The sizes differ, or there is no crop.

    Source: DINO, arXiv:2104.14294, with one global crop as in TIPSv2, arXiv:2604.12012.
    """
    if len(student_logits_CBK) == 0 or student_logits_CBK.shape[1:] != teacher_probs_BK.shape:
        raise ValueError("each image needs a crop or more, with the teacher's prototypes")
    log_probs_CBK = student_logits_CBK.float().log_softmax(-1)
    loss_CB = -(teacher_probs_BK.detach() * log_probs_CBK).sum(-1)
    return loss_CB.mean()
