"""Reduces the losses of tokens to a scalar, by the mean or by the paper's sum.

Shapes: B batch, N tokens of an image.
"""

from typing import Literal

from torch import Tensor

Normalization = Literal["mean", "sum"]


def reduce_tokens(
    loss_BN: Tensor, counted_BN: Tensor | None, normalization: Normalization
) -> Tensor:
    """Reduce the losses of tokens to a scalar.

    Args:
        loss_BN: One loss a token.
        counted_BN: bool; the tokens that count, the same number in each image; None for all.
        normalization: "mean" over the counted tokens gives a loss weight the same meaning for all
            image sizes and for iBOT and iBOT++. "sum" over an image's tokens, then the mean over
            images, is the formula printed in TIPSv2 (arXiv:2604.12012). Which of the two it used is
            not published.
    """
    counted = loss_BN if counted_BN is None else loss_BN[counted_BN]
    return counted.mean() if normalization == "mean" else counted.sum() / len(loss_BN)
