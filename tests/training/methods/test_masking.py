"""Masks: the same exact number in every image, from the generator alone."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from training.methods.captioned import random_masks


@given(
    batch=st.integers(1, 6),
    num_patches=st.integers(1, 80),
    ratio=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_every_image_has_the_same_number_of_masked_patches(
    batch: int, num_patches: int, ratio: float, seed: int
) -> None:
    masked_BN = random_masks(batch, num_patches, ratio, torch.Generator().manual_seed(seed))
    again_BN = random_masks(batch, num_patches, ratio, torch.Generator().manual_seed(seed))
    assert masked_BN.dtype == torch.bool
    assert masked_BN.shape == (batch, num_patches)
    assert masked_BN.sum(1).tolist() == [round(ratio * num_patches)] * batch
    assert torch.equal(masked_BN, again_BN)
