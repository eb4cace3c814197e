"""Find the configuration of a model from the shapes of its arrays."""

import math
import re
from functools import cache

from transformers import Tipsv2Config, Tipsv2TextConfig, Tipsv2VisionConfig

from model.checkpoints.array_archive import ArrayArchive, require
from model.checkpoints.checkpoint import CheckpointError
from model.variants import VARIANTS

# Width of an attention head, which the files do not state: 72 in SO400m, 64 in all other releases.
HEAD_WIDTHS = (64, 72)


def variant_name(config: Tipsv2Config) -> str:
    """Name of a released size, or of width and depth, such as "w192d6"."""
    sizes = _sizes(config)
    for name, known in _known_sizes().items():
        if known == sizes:
            return name
    vision, _ = tower_configs(config)
    return f"w{vision.hidden_size}d{vision.num_hidden_layers}"


def tower_configs(config: Tipsv2Config) -> tuple[Tipsv2VisionConfig, Tipsv2TextConfig]:
    """Configurations of the towers; of a built configuration, so they are objects."""
    vision, text = config.vision_config, config.text_config
    assert isinstance(vision, Tipsv2VisionConfig)
    assert isinstance(text, Tipsv2TextConfig)
    return vision, text


def pair_config(vision: ArrayArchive, text: ArrayArchive, temperature: float) -> Tipsv2Config:
    """Configuration of the model that two official files hold.

    Raises:
        CheckpointError: An array that determines a size is missing or impossible, or the towers are
            of different models.
    """
    width = require(vision, "cls_token", 3)[2]
    text_width = require(text, "token_embedding.weight", 2)[1]
    if width != text_width:
        raise CheckpointError(
            f"{vision.path.name} holds {_known_by_width(width)} and {text.path.name} "
            f"{_known_by_width(text_width)}, which do not fit together; put the two files of "
            f"one model into {vision.path.parent}"
        )
    heads = _num_heads(vision, width)
    return Tipsv2Config(
        text_config=_text_config(text, heads),
        vision_config=_vision_config(vision, heads),
        temperature_init_value=temperature,
    )


@cache
def _known_sizes() -> dict[str, tuple[object, ...]]:
    return {name: _sizes(known.build()) for name, known in VARIANTS.items()}


def _sizes(config: Tipsv2Config) -> tuple[object, ...]:
    vision, text = tower_configs(config)
    return (
        vision.hidden_size,
        vision.num_hidden_layers,
        vision.num_attention_heads,
        int(vision.hidden_size * vision.mlp_ratio),
        vision.use_swiglu_ffn,
        vision.patch_size,
        text.num_hidden_layers,
        text.intermediate_size,
    )


def _known_by_width(width: int) -> str:
    for name, known in VARIANTS.items():
        if known.width == width:
            return f"a tower of {name} (width {width})"
    return f"a tower of width {width}"


def _num_heads(archive: ArrayArchive, width: int) -> int:
    for known in VARIANTS.values():
        if known.width == width:
            return known.heads
    for head_width in HEAD_WIDTHS:
        if width % head_width == 0:
            return width // head_width
    raise CheckpointError(
        f"{archive.path} has width {width}, and .npz files do not state the number of "
        "attention heads; convert it to a transformers folder, whose config.json states it"
    )


def _num_blocks(archive: ArrayArchive, prefix: str) -> int:
    pattern = re.compile(re.escape(prefix) + r"(\d{1,4})\.")
    indices = [int(found[1]) for name in archive.arrays if (found := pattern.match(name))]
    if not indices:
        raise CheckpointError(
            f"{archive.path} has no block {prefix}0; use the file as it was released"
        )
    return 1 + max(indices)


def _vision_config(archive: ArrayArchive, heads: int) -> dict[str, object]:
    width = require(archive, "cls_token", 3)[2]
    patch = require(archive, "patch_embed.proj.weight", 4)[2]
    num_positions = require(archive, "pos_embed", 3)[1] - 1
    side = math.isqrt(max(num_positions, 0))
    if side == 0 or side**2 != num_positions:
        raise CheckpointError(
            f"{archive.path} has {num_positions} positions in 'pos_embed' besides the first, not a "
            "square number; use the file as it was released"
        )
    num_registers = require(archive, "register_tokens", 3)[1]
    if num_registers != 1:
        raise CheckpointError(
            f"{archive.path} has {num_registers} register tokens, and the "
            "TIPSv2 family has one, its second CLS token; use a file of that family"
        )
    return {
        "hidden_size": width,
        "num_hidden_layers": _num_blocks(archive, "blocks."),
        "num_attention_heads": heads,
        "image_size": side * patch,
        "patch_size": patch,
        **_feed_forward(archive, width),
    }


def _feed_forward(archive: ArrayArchive, width: int) -> dict[str, object]:
    if not any(".mlp.w3." in name or ".mlp.w12." in name for name in archive.arrays):
        hidden = require(archive, "blocks.0.mlp.fc1.weight", 2)[0]
        return {"use_swiglu_ffn": False, "mlp_ratio": _ratio(width, hidden)}
    hidden = require(archive, "blocks.0.mlp.w3.weight", 2)[1]
    # transformers takes two thirds of an MLP's width, rounded up to a multiple of 8.
    for mlp_width in (4 * width, *range(hidden, 2 * hidden)):
        if (int(mlp_width * 2 / 3) + 7) // 8 * 8 == hidden:
            return {"use_swiglu_ffn": True, "mlp_ratio": _ratio(width, mlp_width)}
    raise CheckpointError(
        f"{archive.path} has SwiGLU layers of hidden width {hidden}, which transformers cannot "
        "build (it makes multiples of 8); train with another hidden width"
    )


def _ratio(width: int, hidden: int) -> float:
    """The factor that gives exactly `hidden` when transformers truncates its product."""
    if hidden % width == 0:
        return hidden // width
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _text_config(archive: ArrayArchive, heads: int) -> dict[str, object]:
    vocab_size, width = require(archive, "token_embedding.weight", 2)
    return {
        "vocab_size": vocab_size,
        "hidden_size": width,
        "intermediate_size": require(archive, "transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        "num_hidden_layers": _num_blocks(archive, "transformer.resblocks."),
        "num_attention_heads": heads,
    }
