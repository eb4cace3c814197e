"""Read a transformers folder of dense heads (`-dpt`): three heads on one backbone.

The folder has a copy of its backbone. It must equal the model's vision tower, since heads that were
trained on another tower give useless maps; then it is dropped.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import JsonValue
from torch import Tensor
from transformers import (
    Tipsv2DptConfig,
    Tipsv2DptForDensePrediction,
    Tipsv2Model,
    Tipsv2VisionConfig,
)

from model.checkpoints.checkpoint import CheckpointError, digests
from model.checkpoints.transformers_folder import CONFIG_FILE, load, parse_config, read_config
from model.checkpoints.weights import load_weights
from model.graphs import DENSE_TASKS

ALL_HEADS = Tipsv2DptForDensePrediction.__name__
# Settings that change what the same weights compute.
SAME_SETTINGS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
    "patch_size",
    "num_register_tokens",
    "use_swiglu_ffn",
)


def read_dense_folder(
    folder: Path, model: Tipsv2Model
) -> tuple[Tipsv2DptForDensePrediction, dict[str, JsonValue]]:
    """Read heads and attach them to a model's vision tower.

    Args:
        folder: As `save_pretrained` of `Tipsv2DptForDensePrediction` writes it, or as published.
        model: The model that the heads were trained on.

    Returns:
        The heads, see `attach_heads`, and their origin for the manifest.

    Raises:
        CheckpointError: The folder is not of this kind or incomplete, or its backbone differs.
    """
    settings = read_config(folder)
    if settings["model_type"] != Tipsv2DptConfig.model_type:
        raise CheckpointError(
            f"{folder} holds a model of type {settings['model_type']!r}, not 'tipsv2_dpt'; name a "
            "-dpt folder as the dense heads"
        )
    named = settings.get("architectures") or [ALL_HEADS]
    if named != [ALL_HEADS]:
        raise CheckpointError(
            f"{folder / CONFIG_FILE} names the architectures {named}, and dense heads are "
            f"{ALL_HEADS}, all three in one; download the -dpt repository of the release"
        )
    config = parse_config(Tipsv2DptConfig, folder, settings)
    _check_settings(folder, config, model)
    loaded, files, _ = load(Tipsv2DptForDensePrediction, folder, config)
    tensors = loaded.state_dict()
    _check_backbone(folder, tensors, model)
    heads = {n: tensor for n, tensor in tensors.items() if not n.startswith("backbone.")}
    origin: dict[str, JsonValue] = {
        "kind": "transformers-dpt",
        "files": dict(digests([folder / CONFIG_FILE, *files])),
        "tasks": list(DENSE_TASKS),
        "depth_activation": config.depth_decoder_activation,
        "depth_activation_from": CONFIG_FILE,
    }
    return attach_heads(model, config, heads, path=folder), origin


def attach_heads(
    model: Tipsv2Model, config: Tipsv2DptConfig, heads: Mapping[str, Tensor], *, path: Path
) -> Tipsv2DptForDensePrediction:
    """Attach heads to a model's vision tower, without a copy of either.

    Args:
        model: The model whose vision tower is the backbone.
        config: Configuration of heads and backbone.
        heads: The tensors of all heads, named `TASK_neck...` and `TASK_decoder...`.
        path: What error messages name.

    Returns:
        Heads in float32 and evaluation mode; the backbone shares the model's tensors.

    Raises:
        CheckpointError: A tensor is missing, left over, of a wrong shape or not finite.
    """
    tower = model.vision_model.state_dict()
    weights = {f"backbone.{name}": tensor for name, tensor in tower.items()} | dict(heads)
    return load_weights(Tipsv2DptForDensePrediction, weights, config, path=path)


def _check_settings(folder: Path, config: Tipsv2DptConfig, model: Tipsv2Model) -> None:
    backbone, tower = config.backbone_config, model.vision_model.config
    if not isinstance(backbone, Tipsv2VisionConfig):
        raise CheckpointError(
            f"{folder / CONFIG_FILE} has a backbone that is no TIPSv2 vision tower; name a -dpt "
            "folder of the TIPSv2 family"
        )
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
            f"{folder / CONFIG_FILE} names {num_layers} layers for {num_stages} stages of a head; "
            "save the model again"
        )
    if not backbone.apply_layernorm or backbone.reshape_hidden_states:
        raise CheckpointError(
            f"{folder / CONFIG_FILE} has a backbone without apply_layernorm, or with "
            "reshape_hidden_states, which dense heads cannot read; save the model again"
        )


def _check_backbone(folder: Path, tensors: dict[str, Tensor], model: Tipsv2Model) -> None:
    tower = model.vision_model.state_dict()
    for name, tensor in tower.items():
        theirs = tensors[f"backbone.{name}"]
        if theirs.shape != tensor.shape or not torch.equal(theirs, tensor):
            same_shape = theirs.shape == tensor.shape
            apart = f" (by up to {(theirs - tensor).abs().max():.3g})" if same_shape else ""
            raise CheckpointError(
                f"{folder} has a backbone that is not the model's vision tower: {name!r} differs"
                f"{apart}; name the -dpt folder whose heads were trained on this model"
            )
