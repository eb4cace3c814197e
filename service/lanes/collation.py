"""Items of one bucket as the arrays that a runtime takes.

Shape legend: B batch, L tokens, H W pixels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.lanes.work import Bucket

# For images float32 [B, 3, H, W]; for texts token ids and mask, int64 [B, L] each.
Inputs = tuple[NDArray[Any], ...]


def collate(bucket: Bucket, payloads: Sequence[NDArray[Any]]) -> Inputs:
    """Put items together.

    Args:
        bucket: Of all items.
        payloads: float32 [3, H, W] for images; int64 token ids [L] of any L for texts.
    """
    if bucket.is_image:
        return (np.stack(payloads),)
    longest = max(len(row) for row in payloads)
    ids_BL = np.zeros((len(payloads), longest), dtype=np.int64)
    mask_BL = np.zeros_like(ids_BL)
    for i, row in enumerate(payloads):
        ids_BL[i, : len(row)] = row
        mask_BL[i, : len(row)] = 1
    return ids_BL, mask_BL


def take_rows(inputs: Inputs, rows: Sequence[int]) -> Inputs:
    """Some of the items, in this order; the first ones as they lie are not copied."""
    if list(rows) == list(range(len(rows))):
        return tuple(array[: len(rows)] for array in inputs)
    return tuple(array[list(rows)] for array in inputs)
