"""Symmetric InfoNCE between global image embeddings and their captions, over the global batch.

Shapes: G captioned images of the global batch, R the rows of one rank, D width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from training.losses.precision import without_autocast


def contrastive_loss(
    images_GD: Tensor,
    texts_GD: Tensor,
    temperature: Tensor,
    caption_ids_G: Tensor,
    *,
    rows: slice | None = None,
) -> Tensor:
    """Cross-entropy of each image with its caption among all captions, and the reverse.

    Args:
        images_GD: Not normalised.
        texts_GD: Not normalised; row i belongs to image i.
        temperature: Scalar above 0 that divides the cosines.
        caption_ids_G: int64; equal captions have equal ids. An equal caption of another image is
            also correct, so it is not a negative.
        rows: Rows to count; None for all. The losses of disjoint slices sum to the whole loss, so
            that no rank needs the full matrix of logits.

    Returns:
        Scalar, the sum over the rows of the mean of the two directions, divided by G. float32.

    Raises:
        ValueError: The sizes differ.

    Source: CLIP, arXiv:2103.00020, section 2.3.
    """
    if images_GD.shape != texts_GD.shape or len(caption_ids_G) != len(images_GD):
        raise ValueError("images, texts and caption ids must belong to the same batch")
    images_GD = F.normalize(images_GD.float(), dim=-1)
    texts_GD = F.normalize(texts_GD.float(), dim=-1)
    own = slice(0, len(images_GD)) if rows is None else rows
    target_R = torch.arange(len(images_GD), device=images_GD.device)[own]
    with without_autocast(images_GD):
        to_texts_RG = images_GD[own] @ texts_GD.T / temperature
        # With all rows, one product serves both directions.
        to_images_RG = to_texts_RG.T if rows is None else texts_GD[own] @ images_GD.T / temperature
    equal_RG = caption_ids_G[own][:, None] == caption_ids_G[None, :]
    equal_RG[torch.arange(len(target_R), device=target_R.device), target_R] = False
    to_texts, to_images = (
        F.cross_entropy(logits_RG.masked_fill(equal_RG, -torch.inf), target_R, reduction="sum")
        / len(images_GD)
        for logits_RG in (to_texts_RG, to_images_RG)
    )
    return (to_texts + to_images) / 2
