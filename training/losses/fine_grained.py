"""Patch-name contrast: every patch is classified among the names of the whole batch and "none".

The weak supervision is the names in captions, never a mask: a patch may only show a name of its own
image's caption or none, and each of those names must be shown by a few patches. Names compete
within a patch, which rewards separating two objects over giving all patches the same mixture.

Shapes: B batch, N patches, D width, U distinct names in the batch, P pairs of an image and one
of its names.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from training.losses.precision import without_autocast

_EPSILON = 1e-6


def patch_name_parts(
    patches_BND: Tensor,
    names_UD: Tensor,
    present_BU: Tensor,
    *,
    scale: Tensor,
    nothing: Tensor,
    num_shown: int,
) -> tuple[Tensor, Tensor]:
    """Multiple-instance loss of names over patches, in two parts.

    The loss is the first part plus the mean of the second; ranks weight both by their counts.

    Args:
        patches_BND: Not normalised.
        names_UD: Text embeddings of the names, not normalised.
        present_BU: bool; whether an image's caption has the name. At least one an image.
        scale: Scalar; multiplies the cosines.
        nothing: Scalar; the logit of "no name".
        num_shown: Number of patches that must show each name; at most N.

    Returns:
        A scalar, the mean over patches of -log of the probability outside the names of other
        images; and [P], for each (image, name) pair -log of the mean probability of the name at
        its best patches. float32.

    Raises:
        ValueError: The sizes differ, or there are fewer patches than `num_shown`.

    Source: our own; a partial-label loss with top-k multiple-instance pooling, in the spirit of
    FILIP's late interaction (arXiv:2111.07783).
    """
    if present_BU.shape != (len(patches_BND), len(names_UD)):
        raise ValueError("present_BU must be [batch, names]")
    if not 1 <= num_shown <= patches_BND.shape[1]:
        raise ValueError(f"num_shown must be 1 to {patches_BND.shape[1]} patches, not {num_shown}")
    patches_BND, names_UD = (F.normalize(part.float(), dim=-1) for part in (patches_BND, names_UD))
    with without_autocast(patches_BND):
        cosine_BNU = patches_BND @ names_UD.T
    logits_BNU = cosine_BNU * scale
    nothing_BN1 = nothing.expand(*logits_BNU.shape[:2], 1)
    log_total_BN = torch.cat((logits_BNU, nothing_BN1), dim=-1).logsumexp(-1)
    allowed_BNU = logits_BNU.masked_fill(~present_BU[:, None, :], -torch.inf)
    log_allowed_BN = torch.cat((allowed_BNU, nothing_BN1), dim=-1).logsumexp(-1)
    stray = (log_total_BN - log_allowed_BN).mean()
    image, name = present_BU.nonzero(as_tuple=True)
    own_PN = logits_BNU[image, :, name] - log_total_BN[image]
    shown_P = own_PN.topk(num_shown, dim=1).values.exp().mean(1)
    return stray, -(shown_P + _EPSILON).log()
