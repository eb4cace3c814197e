"""Masks: the same exact number in every image, from the generator alone."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from training.masking import random_masks


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


def test_ranks_draw_the_masks_of_one_batch() -> None:
    whole_BN = random_masks(6, 9, 0.5, torch.Generator().manual_seed(4))
    generators = [torch.Generator().manual_seed(4) for _ in range(2)]
    parts = [
        random_masks(6, 9, 0.5, generator, rows=rows)
        for generator, rows in zip(generators, (slice(0, 4), slice(4, 6)), strict=True)
    ]
    assert torch.equal(torch.cat(parts), whole_BN)
    # Later random numbers are the same on all ranks too.
    assert torch.equal(generators[0].get_state(), generators[1].get_state())
