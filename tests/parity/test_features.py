"""Features against transformers' own model with eager attention, in float32.

Ours run with transformers' default, fused attention. Values are compared with transformers'
modules as they are, the last attention replaced by its value path from outside; a second
computation, in NumPy and float64, is in `test_value_path`.
"""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Tipsv2Model

from model.features import text_features, vision_features, vision_tokens
from tests.model.checkpoints.official_layout import SHAPES, small_model

VOCAB_SIZE = 50
SIZES = [(56, 56), (28, 42), (126, 70), (14, 98), (448, 448)]


@pytest.fixture(scope="module", params=list(SHAPES))
def model(request: pytest.FixtureRequest) -> Tipsv2Model:
    """An MLP like B's, SwiGLU like g's, and a ratio that is no integer like SO400m's."""
    torch.set_num_threads(1)
    return small_model(request.param, vocab_size=VOCAB_SIZE, layers=3)


@pytest.fixture(scope="module")
def eager(model: Tipsv2Model) -> Tipsv2Model:
    copied = copy.deepcopy(model)
    copied.set_attn_implementation("eager")
    assert copied.vision_model.config._attn_implementation == "eager"
    assert copied.text_model.config._attn_implementation == "eager"
    return copied


def pixels(size_hw: tuple[int, int]) -> Tensor:
    return torch.rand(2, 3, *size_hw, generator=torch.Generator().manual_seed(0))


def texts(lengths: list[int], width: int) -> tuple[Tensor, Tensor]:
    """Random ids, right-padded with 0, and their mask."""
    generator = torch.Generator().manual_seed(1)
    ids_BL = torch.randint(1, VOCAB_SIZE, (len(lengths), width), generator=generator)
    mask_BL = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    return ids_BL * mask_BL, mask_BL


def close(actual: Tensor, expected: Tensor) -> None:
    assert expected.std() > 0.1, "a tensor of nearly one value would hide mistakes"
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("size_hw", SIZES)
def test_cls_and_patches(model: Tipsv2Model, eager: Tipsv2Model, size_hw: tuple[int, int]) -> None:
    tokens_BTD = eager.vision_model(pixel_values=pixels(size_hw)).last_hidden_state
    for found in (vision_features(model, pixels(size_hw)), vision_tokens(model, pixels(size_hw))):
        close(found.cls1_BD, tokens_BTD[:, 0])
        close(found.cls2_BD, tokens_BTD[:, 1])
        close(found.patches_BND, tokens_BTD[:, 2:])


@torch.no_grad()
@pytest.mark.parametrize("size_hw", SIZES)
def test_values(
    model: Tipsv2Model,
    eager: Tipsv2Model,
    size_hw: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attention: Any = eager.vision_model.encoder.layer[-1].attention

    def value_path(hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        return attention.o_proj(attention.v_proj(hidden_states)), None

    ordinary_BTD = eager.vision_model(pixel_values=pixels(size_hw)).last_hidden_state
    monkeypatch.setattr(attention, "forward", value_path)
    expected_BTD = eager.vision_model(pixel_values=pixels(size_hw)).last_hidden_state
    close(vision_features(model, pixels(size_hw)).values_BND, expected_BTD[:, 2:])
    assert (expected_BTD - ordinary_BTD).abs().max() > 0.01, "the two paths should differ"


@torch.no_grad()
@pytest.mark.parametrize(
    ("lengths", "width"), [([64, 1, 17], 64), ([5], 5), ([1, 1], 1), ([3, 7, 2, 7], 12)]
)
def test_texts(model: Tipsv2Model, eager: Tipsv2Model, lengths: list[int], width: int) -> None:
    ids_BL, mask_BL = texts(lengths, width)
    expected_BD = eager.text_model(input_ids=ids_BL, attention_mask=mask_BL).pooler_output
    close(text_features(model, ids_BL, mask_BL), expected_BD)


@torch.no_grad()
def test_texts_without_their_padding(model: Tipsv2Model, eager: Tipsv2Model) -> None:
    """The reference pads to 64 always; we cut off what is padding in all of a batch."""
    ids_BL, mask_BL = texts([9, 4, 1], 64)
    expected_BD = eager.text_model(input_ids=ids_BL, attention_mask=mask_BL).pooler_output
    close(text_features(model, ids_BL[:, :9], mask_BL[:, :9]), expected_BD)


@torch.no_grad()
def test_similarities(model: Tipsv2Model, eager: Tipsv2Model) -> None:
    """CLS1 and the temperature are what transformers' logits are made of."""
    ids_BL, mask_BL = texts([4, 9, 2], 9)
    expected = eager(input_ids=ids_BL, attention_mask=mask_BL, pixel_values=pixels((56, 84)))
    images_BD = torch.nn.functional.normalize(vision_features(model, pixels((56, 84))).cls1_BD)
    texts_BD = torch.nn.functional.normalize(text_features(model, ids_BL, mask_BL))
    cosines = images_BD @ texts_BD.T
    torch.testing.assert_close(
        cosines, expected.logits_per_image * eager.temperature, rtol=0, atol=1e-5
    )
