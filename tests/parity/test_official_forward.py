"""Both towers computed from the arrays of the official files alone.

Order of query, key and value, of SwiGLU's two halves, of tokens and of sine and cosine are the ones
of upstream's modules: DINOv2's blocks, `torch.nn.MultiheadAttention` and PAX' text encoder. Nothing
here goes through transformers or through our reader.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.checkpoints.official import read_pair
from model.features import text_features, vision_features, vision_tokens
from tests.model.checkpoints.official_layout import SHAPES, small_model, write_pair

NUM_HEADS, VOCAB_SIZE = 2, 40
Arrays = dict[str, Tensor]


def arrays_of(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored.files}


def linear(arrays: Arrays, name: str, x: Tensor) -> Tensor:
    return F.linear(x, arrays[f"{name}.weight"], arrays[f"{name}.bias"])


def norm(arrays: Arrays, name: str, x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], arrays[f"{name}.weight"], arrays[f"{name}.bias"], eps)


def feed_forward(arrays: Arrays, name: str, x: Tensor) -> Tensor:
    if f"{name}.w12.weight" in arrays:
        gate, value = linear(arrays, f"{name}.w12", x).chunk(2, dim=-1)
        return linear(arrays, f"{name}.w3", F.silu(gate) * value)
    return linear(arrays, f"{name}.fc2", F.gelu(linear(arrays, f"{name}.fc1", x)))


def vision(arrays: Arrays, pixels_B3HW: Tensor) -> tuple[Tensor, Tensor]:
    """Final tokens [CLS1, CLS2, patches], and the values trick's patches."""
    kernel = arrays["patch_embed.proj.weight"]
    patches = F.conv2d(pixels_B3HW, kernel, arrays["patch_embed.proj.bias"], stride=14)
    batch, width, *grid_hw = patches.shape
    table = arrays["pos_embed"]
    side = math.isqrt(table.shape[1] - 1)
    square = table[:, 1:].transpose(1, 2).reshape(1, width, side, side)
    places = F.interpolate(square, size=grid_hw, mode="bilinear", antialias=True)
    x = (patches + places).flatten(2).transpose(1, 2)
    cls1 = (arrays["cls_token"] + table[:, :1]).expand(batch, -1, -1)
    x = torch.cat([cls1, arrays["register_tokens"].expand(batch, -1, -1), x], dim=1)
    values = x
    num_blocks = sum(name.endswith(".norm1.weight") for name in arrays)
    for block in (f"blocks.{i}" for i in range(num_blocks)):
        qkv = linear(arrays, f"{block}.attn.qkv", norm(arrays, f"{block}.norm1", x, 1e-6))
        shape = (batch, -1, 3, NUM_HEADS, width // NUM_HEADS)
        query, key, value = qkv.reshape(shape).permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-2, -1) / math.sqrt(shape[-1])).softmax(dim=-1)
        attended = (weights @ value).transpose(1, 2).flatten(2)
        own = value.transpose(1, 2).flatten(2)
        x, values = (
            block_end(
                arrays,
                block,
                x + arrays[f"{block}.ls1.gamma"] * linear(arrays, f"{block}.attn.proj", y),
            )
            for y in (attended, own)
        )
    return norm(arrays, "norm", x, 1e-6), norm(arrays, "norm", values, 1e-6)[:, 2:]


def block_end(arrays: Arrays, block: str, x: Tensor) -> Tensor:
    hidden = feed_forward(arrays, f"{block}.mlp", norm(arrays, f"{block}.norm2", x, 1e-6))
    return x + arrays[f"{block}.ls2.gamma"] * hidden


def text(arrays: Arrays, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
    """Mean over the final tokens that are no padding."""
    table = arrays["token_embedding.weight"]
    width, length = table.shape[1], ids_BL.shape[1]
    half = width // 2
    speeds = torch.exp(torch.arange(half) * -(math.log(10_000) / (half - 1)))
    angles = torch.arange(length)[:, None] * speeds
    x = table[ids_BL] * math.sqrt(width) + torch.cat([angles.sin(), angles.cos()], dim=1)
    num_blocks = sum(name.endswith(".ln_1.weight") for name in arrays)
    for block in (f"transformer.resblocks.{i}" for i in range(num_blocks)):
        attention = nn.MultiheadAttention(width, NUM_HEADS, batch_first=True)
        start = f"{block}.attn."
        attention.load_state_dict(
            {name.removeprefix(start): a for name, a in arrays.items() if name.startswith(start)}
        )
        y = norm(arrays, f"{block}.ln_1", x, 1e-5)
        # Without dropout the modes differ in nothing but a faster path, which zeroes padding.
        x = x + attention.train()(y, y, y, key_padding_mask=mask_BL == 0, need_weights=False)[0]
        y = norm(arrays, f"{block}.ln_2", x, 1e-5)
        x = x + linear(arrays, f"{block}.mlp.c_proj", linear(arrays, f"{block}.mlp.c_fc", y).relu())
    weight = mask_BL[..., None].float()
    return (norm(arrays, "ln_final", x, 1e-5) * weight).sum(dim=1) / weight.sum(dim=1)


@torch.no_grad()
@pytest.mark.parametrize("like", list(SHAPES))
def test_both_towers(like: str, tmp_path: Path) -> None:
    write_pair(small_model(like, vocab_size=VOCAB_SIZE), tmp_path, name="x")
    model, _, _ = read_pair(tmp_path)
    generator = torch.Generator().manual_seed(0)
    for size_hw in [(56, 56), (42, 84), (112, 28), (14, 98)]:
        pixels_B3HW = torch.rand(2, 3, *size_hw, generator=generator)
        found = vision_features(model, pixels_B3HW)
        tokens, values = vision(arrays_of(tmp_path / "x_vision.npz"), pixels_B3HW)
        assert min(tokens.std(), values.std()) > 0.1, "nearly one value would hide mistakes"
        assert (values - tokens[:, 2:]).abs().max() > 0.01, "the two paths should differ"
        for kind in (found, vision_tokens(model, pixels_B3HW)):
            torch.testing.assert_close(kind.cls1_BD, tokens[:, 0], rtol=0, atol=1e-5)
            torch.testing.assert_close(kind.cls2_BD, tokens[:, 1], rtol=0, atol=1e-5)
            torch.testing.assert_close(kind.patches_BND, tokens[:, 2:], rtol=0, atol=1e-5)
        torch.testing.assert_close(found.values_BND, values, rtol=0, atol=1e-5)
    mask_BL = (torch.arange(64) < torch.tensor([[64], [1], [23]])).long()
    ids_BL = torch.randint(1, VOCAB_SIZE, mask_BL.shape, generator=generator) * mask_BL
    expected_BD = text(arrays_of(tmp_path / "x_text.npz"), ids_BL, mask_BL)
    found_BD = text_features(model, ids_BL, mask_BL)
    torch.testing.assert_close(found_BD, expected_BD, rtol=0, atol=1e-5)
    # The reference pads to 64; we pad to the longest text of a batch.
    trimmed_BD = text_features(model, ids_BL[1:, :23], mask_BL[1:, :23])
    torch.testing.assert_close(trimmed_BD, expected_BD[1:], rtol=0, atol=1e-5)
