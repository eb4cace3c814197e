"""What a student learns of a teacher, an average of itself or a frozen one: prototypes, features.

Crops predict the whole image (DINO), patches of a masked view those of the whole view (iBOT, and
iBOT++, where visible patches count as well), and in distillation all patches count.

Shapes: B batch, C local crops of each image, N tokens (patches of an image, or its crops), K
prototypes, D the teacher's width, T any tokens, F width of the bottleneck in which tokens and
prototypes are compared.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from training.losses.precision import without_autocast

Supervised = Literal["all", "masked"]

CHUNK_LOGITS = 2**25
"""Logits that exist at a time: 134 MB in float32, 1,024 tokens with 32,768 prototypes."""


def chunks_of(tokens: Tensor, num_prototypes: int) -> tuple[Tensor, ...]:
    """Split the rows of a tensor so that each part has `CHUNK_LOGITS` logits at most."""
    parts: tuple[Tensor, ...] = tokens.split(max(1, CHUNK_LOGITS // num_prototypes))
    return parts


def prototype_losses(
    student_TF: Tensor,
    prototypes_KF: Tensor,
    targets: tuple[Tensor, Callable[[Tensor], Tensor]],
    temperature: float,
) -> Tensor:
    """`token_losses` of a head's features, without the logits of all tokens at once.

    Some tokens at a time are compared with the prototypes, and once more in the backward pass. That
    is one more product of a few, and saves several tensors of all tokens and prototypes.
    `torch.nn.functional.linear_cross_entropy` splits only losses whose targets are classes.

    Args:
        student_TF: On the unit sphere, as the prototypes are.
        prototypes_KF: The student's.
        targets: Rows of the teacher, one a token, and the function that turns some of them into
            their assignments.
        temperature: Divides the student's cosines.

    Returns:
        [T]. float32.
    """
    rows, assign = targets

    def some(student_SF: Tensor, rows_S: Tensor, prototypes_KF: Tensor) -> Tensor:
        with without_autocast(student_SF):
            logits_SK = student_SF @ prototypes_KF.T / temperature
            return token_losses(logits_SK, assign(rows_S))

    pairs = zip(*(chunks_of(part, len(prototypes_KF)) for part in (student_TF, rows)), strict=True)
    losses = [
        checkpoint(some, *pair, prototypes_KF, use_reentrant=False, preserve_rng_state=False)
        for pair in pairs
    ]
    return torch.cat(losses)


def token_losses(student_logits_BNK: Tensor, teacher_probs_BNK: Tensor) -> Tensor:
    """Cross-entropy from the teacher's assignments to the student's, token by token.

    Which tokens count, and whether their losses are averaged, is decided afterwards. So a loss and
    its parts for the log share the tensors of K prototypes, the largest of a step.

    Args:
        student_logits_BNK: Head outputs, divided by the student temperature.
        teacher_probs_BNK: Rows sum to 1. No gradient flows into them.

    Returns:
        [B, N]. float32.

    Raises:
        ValueError: The sizes differ.

    Source: TIPSv2, arXiv:2604.12012: in distillation the patch loss has no mask and counts all
    tokens; in pretraining see `ibot_loss`.
    """
    if student_logits_BNK.shape != teacher_probs_BNK.shape:
        raise ValueError("student and teacher must have the same patches and prototypes")
    log_probs_BNK = student_logits_BNK.float().log_softmax(-1)
    return -(teacher_probs_BNK.detach() * log_probs_BNK).sum(-1)


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
    return token_losses(student_logits_CBK, teacher_probs_BK.expand_as(student_logits_CBK)).mean()


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


def feature_loss(
    student_BND: Tensor, teacher_BND: Tensor, supervised_BN: Tensor | None = None
) -> Tensor:
    """One minus the cosine of the student's projected tokens with the teacher's.

    Args:
        student_BND: In the teacher's width, not normalised.
        teacher_BND: Not normalised. No gradient flows into them.
        supervised_BN: bool; which tokens count, None for all.

    Returns:
        Scalar, 0 to 2: the mean over the tokens. float32.

    Raises:
        ValueError: The sizes differ.

    Source: not TIPSv2's, which distils prototypes; for teachers published without their head, as
    in RADIO, arXiv:2312.06709, which matches patch features by cosine.
    """
    if student_BND.shape != teacher_BND.shape:
        raise ValueError("student and teacher must have the same tokens and, projected, one width")
    cosine_BN = F.cosine_similarity(student_BND.float(), teacher_BND.detach().float(), dim=-1)
    return 1 - (cosine_BN if supervised_BN is None else cosine_BN[supervised_BN]).mean()
