"""Read transformers folders, of a model or of its dense heads: config.json and safetensors.

A folder of heads (`-dpt`) has a copy of its backbone. It must equal the model's vision tower, since
heads that were trained on another tower give useless maps; then it is dropped.
"""

import json
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from pydantic import JsonValue
from safetensors import SafetensorError, safe_open
from transformers import (
    PretrainedConfig,
    Tipsv2Config,
    Tipsv2DptConfig,
    Tipsv2DptForDensePrediction,
    Tipsv2Model,
    Tipsv2VisionConfig,
)

from model.checkpoints.checkpoint import CheckpointError, Model, digests, load_weights, name_some
from model.encoder import without_implementations
from model.graphs import DENSE_TASKS, DepthActivation
from model.variants import tower_configs, variant_name

CONFIG_FILE: Final = "config.json"
WEIGHTS_FILE: Final = "model.safetensors"
INDEX_FILE: Final = "model.safetensors.index.json"
# As safetensors names them. Other types are quantised weights, which need scales.
FLOAT_TYPES: Final = frozenset({"F64", "F32", "F16", "BF16"})
ALL_HEADS: Final = Tipsv2DptForDensePrediction.__name__
# Settings that change what the same weights compute.
SAME_SETTINGS: Final = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps"),
    *("patch_size", "num_register_tokens", "use_swiglu_ffn"),
)
USE_FLOATS: Final = "use the model's float weights, and quantise when exporting"
SAVE_AGAIN: Final = "download it again, or save the model again with save_pretrained"
Config = TypeVar("Config", bound=PretrainedConfig)


def read_model(folder: Path) -> tuple[Tipsv2Model, str, dict[str, JsonValue]]:
    """Read a folder of a Tipsv2Model.

    Returns:
        The model in float32 and evaluation mode, its variant and its origin.

    Raises:
        CheckpointError: The folder is of another model, or its weights do not fit its config.json.
    """
    advice = "name the folder of a TIPSv2 model, and a -dpt folder as its dense heads"
    config = _read_config(Tipsv2Config, folder, advice)
    num_registers = tower_configs(config)[0].num_register_tokens
    if num_registers != 1:
        raise CheckpointError(f"{folder} has {num_registers} register tokens, TIPSv2 has one")
    model, files, names = _load(Tipsv2Model, folder, config)
    temperature = model.temperature.item()
    if not temperature > 0:
        raise CheckpointError(f"{folder} has a temperature of {temperature}; it must be positive")
    origin: dict[str, JsonValue] = {
        "kind": "transformers",
        "files": dict(digests([folder / CONFIG_FILE, *files])),
        # Published folders have no temperature among their weights.
        "temperature": "of the weights" if "temperature" in names else f"of {CONFIG_FILE}",
    }
    return model, variant_name(config), origin


def read_dense(
    folder: Path, model: Tipsv2Model, depth_activation: DepthActivation | None = None
) -> tuple[Tipsv2DptForDensePrediction, dict[str, JsonValue]]:
    """Read heads and attach them to a model's vision tower.

    Args:
        folder: As `save_pretrained` of `Tipsv2DptForDensePrediction` writes it, or as published.
        model: The model that the heads were trained on.
        depth_activation: Of the depth head's last layer, instead of what config.json says.

    Returns:
        The heads in float32 and evaluation mode, whose backbone shares the model's tensors, and
        their origin for the manifest.

    Raises:
        CheckpointError: The folder is not of this kind or incomplete, or its backbone differs.
    """
    config = _read_config(Tipsv2DptConfig, folder, "name a -dpt folder as the dense heads")
    named = config.architectures or [ALL_HEADS]
    if named != [ALL_HEADS]:
        raise CheckpointError(
            f"{folder / CONFIG_FILE} names the architectures {named}, and dense heads are "
            f"{ALL_HEADS}, all three in one; download the -dpt repository of the release"
        )
    _check_settings(folder, config, model)
    if depth_activation is not None:
        config.depth_decoder_activation = depth_activation
    loaded, files, _ = _load(Tipsv2DptForDensePrediction, folder, config)
    weights = loaded.state_dict()
    for name, tensor in model.vision_model.state_dict().items():
        theirs = weights[f"backbone.{name}"]
        if theirs.shape != tensor.shape or not torch.equal(theirs, tensor):
            raise CheckpointError(
                f"{folder} has a backbone that is not the model's vision tower: {name!r} differs; "
                "name the -dpt folder whose heads were trained on this model"
            )
        weights[f"backbone.{name}"] = tensor
    origin: dict[str, JsonValue] = {
        "kind": "transformers-dpt",
        "files": dict(digests([folder / CONFIG_FILE, *files])),
        "tasks": list(DENSE_TASKS),
        "depth_activation": config.depth_decoder_activation,
        "depth_activation_from": CONFIG_FILE if depth_activation is None else "an option",
    }
    return load_weights(Tipsv2DptForDensePrediction, weights, config, path=folder), origin


def _check_settings(folder: Path, config: Tipsv2DptConfig, model: Tipsv2Model) -> None:
    backbone, tower = config.backbone_config, model.vision_model.config
    file = folder / CONFIG_FILE
    if not isinstance(backbone, Tipsv2VisionConfig):
        raise CheckpointError(f"{file} has a backbone that is no TIPSv2 vision tower")
    for name in SAME_SETTINGS:
        ours, theirs = getattr(tower, name), getattr(backbone, name)
        if ours != theirs:
            raise CheckpointError(
                f"{folder} has heads for a backbone with {name} {theirs}, and the model's is "
                f"{ours}; name the -dpt folder of the same variant"
            )
    num_layers, num_stages = len(backbone.out_indices or ()), len(config.neck_hidden_sizes or ())
    if num_layers != num_stages:
        raise CheckpointError(
            f"{file} names {num_layers} layers for {num_stages} stages of a head; {SAVE_AGAIN}"
        )
    if not backbone.apply_layernorm or backbone.reshape_hidden_states:
        raise CheckpointError(
            f"{file} has a backbone without apply_layernorm, or with reshape_hidden_states, which "
            f"dense heads cannot read; {SAVE_AGAIN}"
        )


def _read_config(kind: type[Config], folder: Path, advice: str) -> Config:
    """The configuration of a folder that must be of a kind, and not of quantised weights."""
    path = folder / CONFIG_FILE
    settings = _read_json(path)
    if settings.get("model_type") != kind.model_type:
        raise CheckpointError(
            f"{path} is of type {settings.get('model_type')!r}, not {kind.model_type!r}; {advice}"
        )
    if "quantization_config" in settings:
        raise CheckpointError(f"{path} describes quantised weights; {USE_FLOATS}")
    try:
        config: Config = kind.from_dict(without_implementations(settings))
    except Exception as error:  # validation raises many types
        raise CheckpointError(
            f"{path} is not valid for transformers ({error}); {SAVE_AGAIN}"
        ) from error
    return config


def _load(
    kind: type[Model], folder: Path, config: PretrainedConfig
) -> tuple[Model, list[Path], set[str]]:
    """Load a model; returns it, the files of its weights, and the names in them."""
    files = _weight_files(folder)
    names = {name for path in files for name in _names(path)}
    return load_weights(kind, folder, config, path=folder), files, names


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    index = folder / INDEX_FILE
    if not index.is_file():
        raise CheckpointError(
            f"{folder} has neither {WEIGHTS_FILE} nor {INDEX_FILE}; save the model there with "
            "save_pretrained, which writes safetensors"
        )
    placed = _read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise CheckpointError(f"{index} has no weight_map; {SAVE_AGAIN}")
    shards = sorted({str(name) for name in placed.values()})
    for name in shards:
        if Path(name).name != name or "\\" in name or not (folder / name).is_file():
            raise CheckpointError(
                f"{index} names {name!r}, which is not a file of the folder; {SAVE_AGAIN}"
            )
    return [folder / name for name in shards]


def _names(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="pt") as file:
            types = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a safetensors file or is cut off ({error}); {SAVE_AGAIN}"
        ) from error
    others = [name for name, kind in types.items() if kind not in FLOAT_TYPES]
    if others:
        told = f"{path} holds {types[others[0]]} at {name_some(others)}"
        raise CheckpointError(f"{told}, which are quantised weights; {USE_FLOATS}")
    return list(types)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); {SAVE_AGAIN}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object; {SAVE_AGAIN}")
    return content
