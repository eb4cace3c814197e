"""Read the official PyTorch pair of a model: `..._vision.npz` and `..._text.npz`.

LayerScale gammas may be absent, if the network was trained without them; then they are ones. The
files of the Scenic (JAX) release are refused: upstream's public code names the parameters of the
vision tower, but not those of the text tower, nor how the npz flattens them. The same weights are
released in the PyTorch layout.

Source: google-deepmind/tips at 4db271d: state dicts of `pytorch/image_encoder.py` and
`pytorch/text_encoder.py`, saved as npz without pickle; `temperature` in the text file
(`pytorch/run_text_encoder_inference.py`); names of `pytorch/checkpoints/download_checkpoints.sh`.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from pydantic import JsonValue
from torch import Tensor
from transformers import Tipsv2Config, Tipsv2Model

from model.checkpoints.architecture import pair_config, tower_configs, variant_name
from model.checkpoints.array_archive import ArrayArchive
from model.checkpoints.checkpoint import CheckpointError, digests, name_some
from model.checkpoints.weight_map import Change, Source, as_stored, gather, load_weights

VISION_SUFFIX = "_vision.npz"
TEXT_SUFFIX = "_text.npz"
TEMPERATURE = "temperature"
# Names in the PyTorch and in the Scenic text files.
THEIR_TEMPERATURES = (TEMPERATURE, "temperature_contrastive")
GAMMA_SUFFIX = ".gamma"
# From transformers' names to upstream's, derived from upstream's state dicts and transformers'
# conversion mapping of `tipsv2`. Upstream fuses query, key and value of both towers, and SwiGLU's
# gate and value.
Renaming = list[tuple[str, str]]
VISION_NAMES: Renaming = [
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.(cls_token|mask_token|register_tokens)$", r"\1"),
    (r"^layernorm\.", "norm."),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.down_proj\.", ".mlp.w3."),
]
VISION_FUSED: dict[str, tuple[str, tuple[str, ...]]] = {
    ".attention.": (".attn.qkv", ("q_proj", "k_proj", "v_proj")),
    ".mlp.": (".mlp.w12", ("gate_proj", "up_proj")),
}
TEXT_NAMES: Renaming = [
    (r"^embeddings\.token_embedding\.", "token_embedding."),
    (r"^final_layer_norm\.", "ln_final."),
    (r"^encoder\.layers\.", "transformer.resblocks."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
]
TEXT_FUSED: dict[str, tuple[str, tuple[str, ...]]] = {
    ".self_attn.": (".attn.in_proj", ("q_proj", "k_proj", "v_proj")),
}


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
    with ArrayArchive(vision_path) as vision, ArrayArchive(text_path) as text:
        for archive in (vision, text):
            if any("/" in name for name in archive.shapes):
                raise CheckpointError(
                    f"{archive.path} is of the Scenic (JAX) release, whose layout is not published "
                    "as a whole; use the file of the same model from the release's pytorch folder"
                )
        temperature = _temperature(text)
        config = pair_config(vision, text, temperature)
        variant = variant_name(config)
        has_gammas = any(name.endswith(GAMMA_SUFFIX) for name in vision.shapes)
        weights = _towers(config, vision, text, has_gammas=has_gammas)
    weights[TEMPERATURE] = torch.tensor(temperature)
    model, found = load_weights(Tipsv2Model, weights, config)
    assert not any(found.values()), found
    origin: dict[str, JsonValue] = {
        "kind": "official-npz",
        "files": dict(digests([vision_path, text_path])),
        "temperature": "of the text file",
        "layer_scale": "of the vision file" if has_gammas else "absent, so ones",
        "num_heads": tower_configs(config)[0].num_attention_heads,
    }
    return model, variant, origin


def _one(folder: Path, suffix: str) -> Path:
    found = sorted(folder.glob(f"*{suffix}"))
    if len(found) != 1:
        holds = f"holds {name_some(path.name for path in found)}" if found else "holds none"
        raise CheckpointError(
            f"{folder} should hold one file *{suffix} and {holds}; put exactly the two .npz files "
            "of one model and its tokenizer into a folder"
        )
    return found[0]


def _temperature(archive: ArrayArchive) -> float:
    name = _temperature_name(archive)
    shape = archive.shapes.get(name)
    if shape not in ((), (1,)):
        what = f"has {name!r} with shape {shape}" if shape else f"lacks {name!r}"
        raise CheckpointError(
            f"{archive.path} {what}, and a text file holds the learnt temperature as one number; "
            "use the file as it was released"
        )
    temperature = archive.read(name).item()
    if temperature <= 0:
        raise CheckpointError(
            f"{archive.path} has a temperature of {temperature}, which must be positive; "
            "use the file as it was released"
        )
    return temperature


def _temperature_name(archive: ArrayArchive) -> str:
    """The temperature's name in a file; a file with both has a leftover, which is refused."""
    return next((name for name in THEIR_TEMPERATURES if name in archive.shapes), TEMPERATURE)


def _towers(
    config: Tipsv2Config, vision: ArrayArchive, text: ArrayArchive, *, has_gammas: bool
) -> dict[str, Tensor]:
    with torch.device("meta"):
        empty = Tipsv2Model(config)
    shapes = {name: parameter.shape for name, parameter in empty.state_dict().items()}
    sources = vision_sources(empty.vision_model.state_dict(), "vision_model.")
    gammas = {name for name, source in sources.items() if source.name.endswith(GAMMA_SUFFIX)}
    if not has_gammas:
        sources = {name: source for name, source in sources.items() if name not in gammas}
    weights = gather(vision, sources, shapes)
    if not has_gammas:
        weights |= {name: torch.ones(shapes[name]) for name in gammas}
    text_side = text_sources(empty.text_model.state_dict(), "text_model.")
    text_side[TEMPERATURE] = Source(_temperature_name(text), lambda tensor: tensor.reshape(()))
    return weights | gather(text, text_side, shapes)


def vision_sources(names: Iterable[str], prefix: str) -> dict[str, Source]:
    """Sources of the vision tower's tensors.

    Args:
        names: Names in a Tipsv2VisionModel's state.
        prefix: Prefix of the result's keys.
    """
    return {prefix + name: _source(name, VISION_NAMES, VISION_FUSED) for name in names}


def text_sources(names: Iterable[str], prefix: str) -> dict[str, Source]:
    """Sources of the text tower's tensors; see `vision_sources`."""
    sources = {prefix + name: _source(name, TEXT_NAMES, TEXT_FUSED) for name in names}
    # torch's MultiheadAttention writes in_proj_weight, where a linear layer would write .weight.
    return {
        name: Source(source.name.replace(".in_proj.", ".in_proj_"), source.change)
        for name, source in sources.items()
    }


def _source(name: str, names: Renaming, fused: dict[str, tuple[str, tuple[str, ...]]]) -> Source:
    change: Change = as_stored
    for infix, (fused_name, parts) in fused.items():
        for index, part in enumerate(parts):
            if f"{infix}{part}." in name:
                name = name.replace(f"{infix}{part}.", f"{fused_name}.")
                change = _chunk(index, len(parts))
    for pattern, replacement in names:
        name = re.sub(pattern, replacement, name)
    return Source(name, change)


def _chunk(index: int, num_chunks: int) -> Callable[[Tensor], Tensor]:
    def take(tensor: Tensor) -> Tensor:
        return tensor.chunk(num_chunks, dim=0)[index]

    return take
