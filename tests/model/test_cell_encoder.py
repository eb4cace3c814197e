"""The encoder of pretrained networks: shapes, padding, known names, saving and loading."""

from itertools import product
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch.nn import functional as F

from model.cell_encoder import CellConfig, CellEncoder, smooth
from model.encoder import load_encoder

WORDS = ("[PAD]", "[UNK]", "dog", "cat", "red", "car")
CONFIG = CellConfig(
    drawing_width=8,
    class_width=16,
    num_drawing_names=5,
    num_class_names=6,
    vocabulary=len(WORDS),
    text_depth=1,
    max_text_tokens=8,
    native_size=64,
)


@pytest.fixture
def encoder() -> CellEncoder:
    torch.manual_seed(0)
    model = WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = Whitespace()
    encoder = CellEncoder(CONFIG, tokenizer)
    return encoder


def test_a_cell_is_averaged_with_the_eight_cells_around_it() -> None:
    unit_BhwD = F.normalize(torch.randn(2, 4, 6, 24), dim=-1)
    expected = torch.zeros_like(unit_BhwD)
    for row, column in product(range(4), range(6)):
        cell_BD = unit_BhwD[:, row, column]
        around = unit_BhwD[:, max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
        cosine_BM = (around.flatten(1, 2) @ cell_BD[..., None])[..., 0]
        weight_BM = ((cosine_BM - 1) * 4.0).exp()
        expected[:, row, column] = (weight_BM[..., None] * around.flatten(1, 2)).sum(1)
    assert torch.allclose(smooth(unit_BhwD, 4.0), expected, atol=1e-5)


def test_padding_changes_no_text_and_gives_finite_numbers(encoder: CellEncoder) -> None:
    short = encoder.text(torch.tensor([[2, 4]]), torch.tensor([[1, 1]]))
    ids = torch.tensor([[2, 4, 0, 0], [0, 0, 0, 0]])
    padded = encoder.text(ids, (ids != 0).long())
    assert torch.allclose(short[0], padded[0], atol=1e-6)
    assert torch.isfinite(padded).all()


def test_a_saved_encoder_loads_by_its_type(encoder: CellEncoder, tmp_path: Path) -> None:
    encoder.save(tmp_path)
    loaded = load_encoder(tmp_path)
    assert isinstance(loaded, CellEncoder)
    assert (loaded.native_size, loaded.size_multiple, loaded.patch_size) == (64, 64, 32)
    pixels = torch.rand(1, 3, 64, 64)
    for before, after in zip(encoder.vision(pixels), loaded.vision(pixels), strict=True):
        assert torch.equal(before, after)
    batch = loaded.tokenizer.encode(["red car"])
    assert batch.token_ids_BL.tolist() == [[4, 5]]
