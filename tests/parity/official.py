"""The official arithmetic on the arrays of the official files alone, apart from our code.

Order of query, key and value, of SwiGLU's two halves, of tokens and of sine and cosine are the ones
of upstream's modules: DINOv2's blocks, `torch.nn.MultiheadAttention` and PAX' text encoder. Nothing
here goes through transformers or through our reader. Written from the published description.

Shapes: B batch, N patches, L tokens, D width, K classes, H W pixels, h w patch rows and columns.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

Arrays = dict[str, Tensor]
# "TCL templates" of the released notebook.
TEMPLATES = (
    "itap of a {}.",
    "a bad photo of a {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
    "a photo of many {}.",
    "a photo of {}s.",
)


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


def vision(arrays: Arrays, pixels_B3HW: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    """Final tokens [CLS1, CLS2, patches], and the values trick's patches."""
    *_, (x, values) = blocks(arrays, pixels_B3HW, num_heads)
    return norm(arrays, "norm", x, 1e-6), norm(arrays, "norm", values, 1e-6)[:, 2:]


def taps(
    arrays: Arrays, pixels_B3HW: Tensor, num_heads: int, numbers: Sequence[int]
) -> list[tuple[Tensor, Tensor]]:
    """What a dense head reads: CLS1 [B, D] and patches [B, D, h, w] of these blocks, from 1."""
    grid_hw = [side // 14 for side in pixels_B3HW.shape[2:]]
    found = []
    for number, (x, _) in enumerate(blocks(arrays, pixels_B3HW, num_heads), start=1):
        if number in numbers:
            tokens = norm(arrays, "norm", x, 1e-6)
            found.append((tokens[:, 0], tokens[:, 2:].transpose(1, 2).unflatten(2, grid_hw)))
    return found


def blocks(arrays: Arrays, pixels_B3HW: Tensor, num_heads: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens after each block, and the same with the block's values in place of its attention."""
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
    num_blocks = sum(name.endswith(".norm1.weight") for name in arrays)
    for block in (f"blocks.{i}" for i in range(num_blocks)):
        qkv = linear(arrays, f"{block}.attn.qkv", norm(arrays, f"{block}.norm1", x, 1e-6))
        shape = (batch, -1, 3, num_heads, width // num_heads)
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
        yield x, values


def block_end(arrays: Arrays, block: str, x: Tensor) -> Tensor:
    hidden = feed_forward(arrays, f"{block}.mlp", norm(arrays, f"{block}.norm2", x, 1e-6))
    return x + arrays[f"{block}.ls2.gamma"] * hidden


def text(arrays: Arrays, ids_BL: Tensor, mask_BL: Tensor, num_heads: int) -> Tensor:
    """Mean over the final tokens that are no padding."""
    table = arrays["token_embedding.weight"]
    width, length = table.shape[1], ids_BL.shape[1]
    half = width // 2
    speeds = torch.exp(torch.arange(half) * -(math.log(10_000) / (half - 1)))
    angles = torch.arange(length)[:, None] * speeds
    x = table[ids_BL] * math.sqrt(width) + torch.cat([angles.sin(), angles.cos()], dim=1)
    num_blocks = sum(name.endswith(".ln_1.weight") for name in arrays)
    for block in (f"transformer.resblocks.{i}" for i in range(num_blocks)):
        attention = nn.MultiheadAttention(width, num_heads, batch_first=True)
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


def class_texts(
    names: Sequence[str], embed: Callable[[list[str]], Tensor], templates: Sequence[str] = TEMPLATES
) -> Tensor:
    """Unit embeddings [K, D] of classes: of each prompt, averaged, and normalised again."""
    rows = []
    for name in names:
        text_PD = embed([template.format(name) for template in templates])
        rows.append(F.normalize(F.normalize(text_PD, dim=-1).mean(dim=0), dim=-1))
    return torch.stack(rows)


def notebook_mask(
    image: Image.Image, text_KD: Tensor, values: Callable[[Tensor], Tensor], side: int
) -> np.ndarray:
    """Labels from 1 as the released notebook computes them.

    Bicubic to the short side, windows that overlap by a quarter, bilinear cosines, softmax without
    a temperature, mean over windows, bilinear to the image, the largest.

    Args:
        image: RGB.
        text_KD: Unit embeddings of the classes.
        values: From pixels [3, H, W] to the values trick's patches [N, D].
        side: Of a window; 448 in the notebook.
    """
    stride = side * 3 // 4
    short = min(image.size)
    width, height = (int(side * length / short) for length in image.size)
    scaled = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255
    pixels_3HW = torch.from_numpy(scaled).permute(2, 0, 1)
    sum_KHW, hits_HW = torch.zeros(len(text_KD), height, width), torch.zeros(height, width)
    for row in range(max(height - side + stride - 1, 0) // stride + 1):
        for column in range(max(width - side + stride - 1, 0) // stride + 1):
            bottom = min(row * stride + side, height)
            right = min(column * stride + side, width)
            part = np.s_[max(bottom - side, 0) : bottom, max(right - side, 0) : right]
            window_3HW = pixels_3HW[:, *part]
            unit_ND = F.normalize(values(window_3HW), dim=-1)
            grid_hw = [length // 14 for length in window_3HW.shape[1:]]
            cosine_1Khw = (text_KD @ unit_ND.T).unflatten(1, grid_hw)[None]
            wide_KHW = F.interpolate(cosine_1Khw, window_3HW.shape[1:], mode="bilinear")[0]
            sum_KHW[:, *part] += wide_KHW.softmax(dim=0)
            hits_HW[part] += 1
    size_hw = image.size[::-1]
    mean_1KHW = F.interpolate((sum_KHW / hits_HW)[None], size_hw, mode="bilinear")
    labels_HW: np.ndarray = mean_1KHW[0].argmax(dim=0).numpy() + 1
    return labels_HW
