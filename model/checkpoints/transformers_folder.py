"""Read transformers folders: config.json and safetensors, in one file or sharded."""

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import JsonValue
from safetensors import SafetensorError, safe_open
from transformers import PretrainedConfig, Tipsv2Config, Tipsv2Model

from model.checkpoints.architecture import tower_configs, variant_name
from model.checkpoints.checkpoint import CheckpointError, digests, name_some
from model.checkpoints.weights import Model, load_weights
from model.encoder import without_implementations

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TEMPERATURE = "temperature"
# As safetensors names them. Other types are quantised weights, which need scales.
FLOAT_TYPES = frozenset({"F64", "F32", "F16", "BF16"})
Config = TypeVar("Config", bound=PretrainedConfig)
SAVE_AGAIN = "download it again, or save the model again with save_pretrained"


def is_transformers_folder(folder: Path) -> bool:
    """Whether a folder has a config.json."""
    return (folder / CONFIG_FILE).is_file()


def read_config(folder: Path) -> dict[str, Any]:
    """Read `config.json`.

    Raises:
        CheckpointError: It is not a JSON object, or describes quantised weights.
    """
    path = folder / CONFIG_FILE
    settings = _read_json(path)
    if not isinstance(settings.get("model_type"), str):
        raise CheckpointError(f"{path} names no model_type; {SAVE_AGAIN}")
    if "quantization_config" in settings:
        raise CheckpointError(
            f"{path} describes quantised weights, which cannot be verified; use the model's float "
            "weights, and quantise when exporting"
        )
    return without_implementations(settings)


def read_model(folder: Path) -> tuple[Tipsv2Model, str, dict[str, JsonValue]]:
    """Read a folder of a Tipsv2Model.

    Returns:
        The model in float32 and evaluation mode, its variant and its origin.

    Raises:
        CheckpointError: The folder is of another model, or its weights do not fit its config.json.
    """
    settings = read_config(folder)
    if settings["model_type"] != Tipsv2Config.model_type:
        raise CheckpointError(
            f"{folder} holds a model of type {settings['model_type']!r}, not 'tipsv2'; name the "
            "folder of a TIPSv2 model, and a -dpt folder as its dense heads"
        )
    config = parse_config(Tipsv2Config, folder, settings)
    num_registers = tower_configs(config)[0].num_register_tokens
    if num_registers != 1:
        raise CheckpointError(
            f"{folder} has {num_registers} register tokens, and the TIPSv2 family has one, its "
            "second CLS token; use a model of that family"
        )
    model, files, names = load(Tipsv2Model, folder, config)
    temperature = model.temperature.item()
    if not temperature > 0:
        raise CheckpointError(f"{folder} has a temperature of {temperature}; it must be positive")
    origin: dict[str, JsonValue] = {
        "kind": "transformers",
        "files": dict(digests([folder / CONFIG_FILE, *files])),
        # Published folders have no temperature among their weights.
        "temperature": "of the weights" if TEMPERATURE in names else f"of {CONFIG_FILE}",
    }
    return model, variant_name(config), origin


def parse_config(kind: type[Config], folder: Path, settings: dict[str, Any]) -> Config:
    """Build a configuration from the settings of a folder.

    Raises:
        CheckpointError: A setting is invalid.
    """
    try:
        config: Config = kind.from_dict(settings)
    except Exception as error:  # validation raises many types
        raise CheckpointError(
            f"{folder / CONFIG_FILE} is not valid for transformers ({error}); {SAVE_AGAIN}"
        ) from error
    return config


def load(
    kind: type[Model], folder: Path, config: PretrainedConfig
) -> tuple[Model, list[Path], set[str]]:
    """Load a model and check that every tensor was used.

    Returns:
        The model in float32 and evaluation mode, the files of its weights, and the names in them.

    Raises:
        CheckpointError: Weights are unreadable, missing, left over, of a wrong shape or not finite.
    """
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
        raise CheckpointError(
            f"{path} holds {types[others[0]]} at {name_some(others)}, which are quantised weights; "
            "use the model's float weights, and quantise when exporting"
        )
    return list(types)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); {SAVE_AGAIN}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object; {SAVE_AGAIN}")
    return content
