"""Read the official PyTorch pair of a model: `..._vision.npz` and `..._text.npz`.

Sizes come from the shapes of the arrays. LayerScale gammas may be absent, if the network was
trained without them; then they are ones. The files of the Scenic (JAX) release are refused, since
the layout of their text tower is not published; its weights are released in the PyTorch layout.

Source: google-deepmind/tips at 4db271d: state dicts of `pytorch/image_encoder.py` and
`pytorch/text_encoder.py`, saved as npz without pickle; `temperature` in the text file
(`pytorch/run_text_encoder_inference.py`); names of `pytorch/checkpoints/download_checkpoints.sh`.
"""

import math
import re
from pathlib import Path
from typing import Final

import torch
from pydantic import JsonValue
from transformers import Tipsv2Config, Tipsv2Model

from model.checkpoints.array_archive import Arrays, read_archive
from model.checkpoints.checkpoint import CheckpointError, digests, load_weights, name_some
from model.variants import VARIANTS, tower_configs, variant_name

VISION_SUFFIX: Final = "_vision.npz"
TEXT_SUFFIX: Final = "_text.npz"
# Names in the PyTorch and in the Scenic text files.
TEMPERATURES: Final = ("temperature", "temperature_contrastive")
GAMMA: Final = re.compile(r"blocks\.\d+\.ls[12]\.gamma")
# Width of an attention head, which the files do not state: 72 in SO400m, 64 in all other releases.
HEAD_WIDTHS: Final = (64, 72)
# Names of released files begin so: tips_v2_oss_g14_vision.npz.
SIZE_IN_NAME: Final = re.compile(r"tips_(?:v2_)?oss_((?:s|b|l|g|so|so400m)14)_")
AS_RELEASED: Final = "use the files as they were released"


def is_pair_folder(folder: Path) -> bool:
    """Whether a folder holds an .npz of a tower."""
    return any(folder.glob(f"*{VISION_SUFFIX}")) or any(folder.glob(f"*{TEXT_SUFFIX}"))


def read_pair(folder: Path) -> tuple[Tipsv2Model, str, dict[str, JsonValue]]:
    """Read both towers and the temperature.

    Returns:
        The model in float32 and evaluation mode, its variant and its origin.

    Raises:
        CheckpointError: The folder does not hold exactly one pair, or the pair is invalid.
    """
    paths = [_one(folder, suffix) for suffix in (VISION_SUFFIX, TEXT_SUFFIX)]
    vision, text = map(read_archive, paths)
    if any("/" in name for name in (*vision, *text)):
        raise CheckpointError(
            f"{folder} holds files of the Scenic (JAX) release, whose layout is not published as a "
            "whole; use those of the same model from the release's pytorch folder"
        )
    # A file with both names has a leftover, which is refused below.
    name = next((name for name in TEMPERATURES if name in text), TEMPERATURES[0])
    learnt = text.pop(name, torch.empty(0))
    if learnt.numel() != 1 or learnt.ndim > 1 or not 0 < learnt.item() < math.inf:
        raise CheckpointError(
            f"{paths[1]} needs the learnt temperature as one positive number {name!r}; "
            f"{AS_RELEASED}"
        )
    config = pair_config(folder, vision, text, learnt.item())
    for path in paths:
        _check_name(path, variant_name(config))
    tower, _ = tower_configs(config)
    has_gammas = any(GAMMA.fullmatch(name) for name in vision)
    if not has_gammas:
        for block in range(tower.num_hidden_layers):
            for scale in ("ls1", "ls2"):
                vision[f"blocks.{block}.{scale}.gamma"] = torch.ones(tower.hidden_size)
    # transformers knows the names of these files, which the first folders on the hub had.
    weights = {f"vision_encoder.{name}": array for name, array in vision.items()}
    weights |= {f"text_encoder.{name}": array for name, array in text.items()}
    weights["temperature"] = learnt.reshape(())
    origin: dict[str, JsonValue] = {
        "kind": "official-npz",
        "files": dict(digests(paths)),
        "temperature": "of the text file",
        "layer_scale": "of the vision file" if has_gammas else "absent, so ones",
        "num_heads": tower.num_attention_heads,
    }
    model = load_weights(Tipsv2Model, weights, config, path=folder)
    return model, variant_name(config), origin


def _check_name(path: Path, variant: str) -> None:
    """Refuse a file whose name says another released size than its arrays have."""
    said = SIZE_IN_NAME.match(path.name)
    if said is not None and said[1].replace("so14", "so400m14") != variant:
        raise CheckpointError(
            f"{path} is named as {said[1]} and holds a model of size {variant}; download it again, "
            "or rename the file if it is yours"
        )


def _one(folder: Path, suffix: str) -> Path:
    found = sorted(folder.glob(f"*{suffix}"))
    if len(found) != 1:
        holds = f"holds {name_some(path.name for path in found)}" if found else "holds none"
        raise CheckpointError(
            f"{folder} should hold one file *{suffix} and {holds}; put exactly the two .npz files "
            "of one model and its tokenizer into a folder"
        )
    return found[0]


def pair_config(folder: Path, vision: Arrays, text: Arrays, temperature: float) -> Tipsv2Config:
    """Configuration of the model that two official files of a folder hold.

    Raises:
        CheckpointError: An array that determines a size is missing or impossible, or the towers are
            of different models.
    """
    try:
        width, text_width = vision["cls_token"].shape[2], text["token_embedding.weight"].shape[1]
        if width != text_width:
            raise ValueError(f"towers of width {width} and {text_width} are of two models")
        heads = _num_heads(width)
        return Tipsv2Config(
            text_config=_text_config(text, heads),
            vision_config=_vision_config(vision, heads),
            temperature_init_value=temperature,
        )
    except (LookupError, ValueError, ArithmeticError) as error:
        raise CheckpointError(
            f"the .npz files in {folder} are not of the official layout ({error!r}); {AS_RELEASED}"
        ) from error


def _num_heads(width: int) -> int:
    known = [variant.heads for variant in VARIANTS.values() if variant.width == width]
    fitting = [width // head for head in HEAD_WIDTHS if width % head == 0]
    if not known + fitting:
        raise ValueError(f"width {width} fits no known number of heads; use a transformers folder")
    return (known + fitting)[0]


def _num_blocks(arrays: Arrays, prefix: str) -> int:
    pattern = re.compile(re.escape(prefix) + r"(\d{1,4})\.")
    indices = [int(found[1]) for name in arrays if (found := pattern.match(name))]
    if not indices:
        raise ValueError(f"no array {prefix}0...")
    return 1 + max(indices)


def _vision_config(arrays: Arrays, heads: int) -> dict[str, object]:
    width, patch = arrays["cls_token"].shape[2], arrays["patch_embed.proj.weight"].shape[2]
    return {
        "hidden_size": width,
        "num_hidden_layers": _num_blocks(arrays, "blocks."),
        "num_attention_heads": heads,
        "image_size": math.isqrt(arrays["pos_embed"].shape[1] - 1) * patch,
        "patch_size": patch,
        **_feed_forward(arrays, width),
    }


def _feed_forward(arrays: Arrays, width: int) -> dict[str, object]:
    if not any(".mlp.w3." in name or ".mlp.w12." in name for name in arrays):
        hidden = arrays["blocks.0.mlp.fc1.weight"].shape[0]
        return {"use_swiglu_ffn": False, "mlp_ratio": _ratio(width, hidden)}
    hidden = arrays["blocks.0.mlp.w3.weight"].shape[1]
    # transformers takes two thirds of an MLP's width, rounded up to a multiple of 8.
    for mlp_width in (4 * width, *range(hidden, 2 * hidden)):
        if (int(mlp_width * 2 / 3) + 7) // 8 * 8 == hidden:
            return {"use_swiglu_ffn": True, "mlp_ratio": _ratio(width, mlp_width)}
    raise ValueError(f"SwiGLU of hidden width {hidden}, and transformers makes multiples of 8")


def _ratio(width: int, hidden: int) -> float:
    """The factor that gives exactly `hidden` when transformers truncates its product."""
    if hidden % width == 0:
        return hidden // width
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _text_config(arrays: Arrays, heads: int) -> dict[str, object]:
    vocab_size, width = arrays["token_embedding.weight"].shape
    return {
        "vocab_size": vocab_size,
        "hidden_size": width,
        "intermediate_size": arrays["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        "num_hidden_layers": _num_blocks(arrays, "transformer.resblocks."),
        "num_attention_heads": heads,
    }
