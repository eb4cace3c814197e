"""Both towers, read from the official files, against the official arithmetic."""

from pathlib import Path

import pytest
import torch

from model.checkpoints.official import read_pair
from model.features import text_features, vision_features, vision_tokens
from tests.model.checkpoints.official_layout import SHAPES, small_model, write_pair
from tests.parity.official import arrays_of, text, vision

NUM_HEADS, VOCAB_SIZE = 2, 40


@torch.no_grad()
@pytest.mark.parametrize("like", list(SHAPES))
def test_both_towers(like: str, tmp_path: Path) -> None:
    write_pair(small_model(like, vocab_size=VOCAB_SIZE), tmp_path, name="x")
    model, _, _ = read_pair(tmp_path)
    generator = torch.Generator().manual_seed(0)
    for size_hw in [(56, 56), (42, 84), (112, 28), (14, 98)]:
        pixels_B3HW = torch.rand(2, 3, *size_hw, generator=generator)
        found = vision_features(model, pixels_B3HW)
        tokens, values = vision(arrays_of(tmp_path / "x_vision.npz"), pixels_B3HW, NUM_HEADS)
        assert min(tokens.std(), values.std()) > 0.1, "nearly one value would hide mistakes"
        assert (values - tokens[:, 2:]).abs().max() > 0.01, "the two paths should differ"
        for kind in (found, vision_tokens(model, pixels_B3HW)):
            torch.testing.assert_close(kind.cls1_BD, tokens[:, 0], rtol=0, atol=1e-5)
            torch.testing.assert_close(kind.cls2_BD, tokens[:, 1], rtol=0, atol=1e-5)
            torch.testing.assert_close(kind.patches_BND, tokens[:, 2:], rtol=0, atol=1e-5)
        torch.testing.assert_close(found.values_BND, values, rtol=0, atol=1e-5)
    mask_BL = (torch.arange(64) < torch.tensor([[64], [1], [23]])).long()
    ids_BL = torch.randint(1, VOCAB_SIZE, mask_BL.shape, generator=generator) * mask_BL
    expected_BD = text(arrays_of(tmp_path / "x_text.npz"), ids_BL, mask_BL, NUM_HEADS)
    found_BD = text_features(model, ids_BL, mask_BL)
    torch.testing.assert_close(found_BD, expected_BD, rtol=0, atol=1e-5)
    # The reference pads to 64; we pad to the longest text of a batch.
    trimmed_BD = text_features(model, ids_BL[1:, :23], mask_BL[1:, :23])
    torch.testing.assert_close(trimmed_BD, expected_BD[1:], rtol=0, atol=1e-5)
