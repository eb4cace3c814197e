"""Symmetric InfoNCE between a batch of global image embeddings and its captions.

Shapes: B batch, D width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def contrastive_loss(
    images_BD: Tensor, texts_BD: Tensor, temperature: Tensor, caption_ids_B: Tensor
) -> Tensor:
    """Cross-entropy of picking one's own caption among all of the batch, and one's own picture.

    Args:
        images_BD: Not normalised.
        texts_BD: Not normalised; row i belongs to image i.
        temperature: Scalar above 0 that divides the cosines.
        caption_ids_B: int64; equal captions have equal ids. An equal caption of another image is
            right too, so it is left out of the negatives.

    Returns:
        Scalar, mean of the two directions. float32.

    Raises:
        ValueError: The sizes differ.

    Source: CLIP, arXiv:2103.00020, section 2.3.
    """
    if images_BD.shape != texts_BD.shape or len(caption_ids_B) != len(images_BD):
        raise ValueError("images, texts and caption ids must belong to the same batch")
    images_BD = F.normalize(images_BD.float(), dim=-1)
    texts_BD = F.normalize(texts_BD.float(), dim=-1)
    logits_BB = images_BD @ texts_BD.T / temperature
    same_BB = caption_ids_B[:, None] == caption_ids_B[None, :]
    same_BB.fill_diagonal_(fill_value=False)
    logits_BB = logits_BB.masked_fill(same_BB, -torch.inf)
    target_B = torch.arange(len(images_BD), device=images_BD.device)
    return (F.cross_entropy(logits_BB, target_B) + F.cross_entropy(logits_BB.T, target_B)) / 2
