"""Read the official PyTorch pair of a model: `..._vision.npz` and `..._text.npz`.

LayerScale gammas may be absent, if the network was trained without them; then they are ones. The
files of the Scenic (JAX) release are refused: upstream's public code names the parameters of the
vision tower, but not those of the text tower, nor how the npz flattens them. The same weights are
released in the PyTorch layout.

Source: google-deepmind/tips at 4db271d: state dicts of `pytorch/image_encoder.py` and
`pytorch/text_encoder.py`, saved as npz without pickle; `temperature` in the text file
(`pytorch/run_text_encoder_inference.py`); names of `pytorch/checkpoints/download_checkpoints.sh`.
"""

import math
import re
from pathlib import Path

import torch
from pydantic import JsonValue
from transformers import Tipsv2Model

from model.checkpoints.architecture import pair_config, tower_configs, variant_name
from model.checkpoints.array_archive import ArrayArchive, read_archive
from model.checkpoints.checkpoint import CheckpointError, digests, name_some
from model.checkpoints.weights import load_weights

VISION_SUFFIX = "_vision.npz"
TEXT_SUFFIX = "_text.npz"
TEMPERATURE = "temperature"
# Names in the PyTorch and in the Scenic text files.
THEIR_TEMPERATURES = (TEMPERATURE, "temperature_contrastive")
GAMMA = re.compile(r"blocks\.\d+\.ls[12]\.gamma")


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
    vision_path, text_path = _one(folder, VISION_SUFFIX), _one(folder, TEXT_SUFFIX)
    vision, text = read_archive(vision_path), read_archive(text_path)
    for archive in (vision, text):
        if any("/" in name for name in archive.arrays):
            raise CheckpointError(
                f"{archive.path} is of the Scenic (JAX) release, whose layout is not published "
                "as a whole; use the file of the same model from the release's pytorch folder"
            )
    temperature_name = _temperature_name(text)
    temperature = _temperature(text, temperature_name)
    config = pair_config(vision, text, temperature)
    weights = {f"vision_encoder.{name}": array for name, array in vision.arrays.items()}
    for name, array in text.arrays.items():
        if name != temperature_name:
            weights[f"text_encoder.{name}"] = array
    has_gammas = any(GAMMA.fullmatch(name) for name in vision.arrays)
    weights[TEMPERATURE] = torch.tensor(temperature)
    tower, _ = tower_configs(config)
    if not has_gammas:
        for block in range(tower.num_hidden_layers):
            for scale in ("ls1", "ls2"):
                name = f"vision_encoder.blocks.{block}.{scale}.gamma"
                weights[name] = torch.ones(tower.hidden_size)
    # transformers knows the names of these files, which the first folders on the hub had.
    model = load_weights(Tipsv2Model, weights, config, path=folder)
    origin: dict[str, JsonValue] = {
        "kind": "official-npz",
        "files": dict(digests([vision_path, text_path])),
        "temperature": "of the text file",
        "layer_scale": "of the vision file" if has_gammas else "absent, so ones",
        "num_heads": tower.num_attention_heads,
    }
    return model, variant_name(config), origin


def _one(folder: Path, suffix: str) -> Path:
    found = sorted(folder.glob(f"*{suffix}"))
    if len(found) != 1:
        holds = f"holds {name_some(path.name for path in found)}" if found else "holds none"
        raise CheckpointError(
            f"{folder} should hold one file *{suffix} and {holds}; put exactly the two .npz files "
            "of one model and its tokenizer into a folder"
        )
    return found[0]


def _temperature(archive: ArrayArchive, name: str) -> float:
    shape = archive.shapes.get(name)
    if shape not in ((), (1,)):
        what = f"has {name!r} with shape {shape}" if shape else f"lacks {name!r}"
        raise CheckpointError(
            f"{archive.path} {what}, and a text file holds the learnt temperature as one number; "
            "use the file as it was released"
        )
    temperature = archive.arrays[name].item()
    if not 0 < temperature < math.inf:
        raise CheckpointError(
            f"{archive.path} has a temperature of {temperature}, which must be positive; "
            "use the file as it was released"
        )
    return temperature


def _temperature_name(archive: ArrayArchive) -> str:
    """The temperature's name in a file; a file with both has a leftover, which is refused."""
    return next((name for name in THEIR_TEMPERATURES if name in archive.arrays), TEMPERATURE)
