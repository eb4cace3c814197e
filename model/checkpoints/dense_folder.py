"""Read a transformers folder of dense heads (`-dpt`): three heads on one backbone, or one.

The folder has a copy of its backbone. It must equal the model's vision tower, since heads that were
trained on another tower give useless maps; then it is dropped.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue
from torch import Tensor
from transformers import (
    PreTrainedModel,
    Tipsv2DptConfig,
    Tipsv2DptForDensePrediction,
    Tipsv2DptForDepthEstimation,
    Tipsv2DptForNormalEstimation,
    Tipsv2DptForSemanticSegmentation,
    Tipsv2Model,
    Tipsv2VisionConfig,
)

from model.checkpoints.checkpoint import CheckpointError, digests
from model.checkpoints.transformers_folder import CONFIG_FILE, load, parse_config, read_config
from model.checkpoints.weight_map import load_weights
from model.graphs import DENSE_TASKS, DenseTask

Heads = Mapping[DenseTask, Mapping[str, Tensor]]
# Modules of one head in Tipsv2DptForDensePrediction, after the task's name.
PARTS = ("neck", "decoder")


ALL_HEADS = Tipsv2DptForDensePrediction.__name__
SINGLE_HEADS: dict[DenseTask, type[PreTrainedModel]] = {
    "depth": Tipsv2DptForDepthEstimation,
    "normals": Tipsv2DptForNormalEstimation,
    "segmentation": Tipsv2DptForSemanticSegmentation,
}
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DenseHeads:
    """Dense heads of a checkpoint.

    Attributes:
        model: Heads in float32 and evaluation mode; the backbone shares the tensors of the model
            that they are attached to. Heads that are not in `tasks` have no modules.
        tasks: In the order of `DENSE_TASKS`.
        origin: For the manifest's provenance.
    """

    model: Tipsv2DptForDensePrediction
    tasks: tuple[DenseTask, ...]
    origin: dict[str, JsonValue]


def read_dense_folder(folder: Path, model: Tipsv2Model) -> DenseHeads:
    """Read heads and attach them to a model's vision tower.

    Args:
        folder: As `save_pretrained` of one of the four dense classes writes it, or as published.
        model: The model that the heads were trained on.

    Raises:
        CheckpointError: The folder is not of this kind or incomplete, or its backbone differs.
    """
    settings = read_config(folder)
    if settings["model_type"] != Tipsv2DptConfig.model_type:
        raise CheckpointError(
            f"{folder} holds a model of type {settings['model_type']!r}, not 'tipsv2_dpt'; name a "
            "-dpt folder as the dense heads"
        )
    kind, tasks = _kind(folder, settings)
    config = parse_config(Tipsv2DptConfig, folder, settings)
    _check_settings(folder, config, model)
    loaded, files, _ = load(kind, folder, config)
    tensors = loaded.state_dict()
    _check_backbone(folder, tensors, model)
    heads = {task: _head(tensors, "" if len(tasks) == 1 else f"{task}_") for task in tasks}
    dense = attach_heads(model, config, heads)
    origin: dict[str, JsonValue] = {
        "kind": "transformers-dpt",
        "files": dict(digests([folder / CONFIG_FILE, *files])),
        "tasks": list(dense.tasks),
        "depth_activation": config.depth_decoder_activation,
        "depth_activation_from": CONFIG_FILE,
    }
    return DenseHeads(model=dense.model, tasks=dense.tasks, origin=origin)


def attach_heads(model: Tipsv2Model, config: Tipsv2DptConfig, heads: Heads) -> DenseHeads:
    """Attach heads to a model's vision tower, without a copy of either.

    Args:
        model: The model whose vision tower is the backbone.
        config: Configuration of heads and backbone.
        heads: The tensors of each head, named `neck...` and `decoder...`.

    Returns:
        The heads, with an empty origin.
    """
    weights = {
        f"backbone.{name}": tensor for name, tensor in model.vision_model.state_dict().items()
    }
    for task, tensors in heads.items():
        weights |= {f"{task}_{name}": tensor for name, tensor in tensors.items()}
    dense, found = load_weights(Tipsv2DptForDensePrediction, weights, config)
    absent = tuple(task for task in DENSE_TASKS if task not in heads)
    lacking = {name for name in found["missing_keys"] if not name.startswith(absent)}
    assert not lacking, lacking
    assert not found["unexpected_keys"], found
    assert not found["mismatched_keys"], found
    for task in absent:
        for part in PARTS:
            delattr(dense, f"{task}_{part}")
    if "depth" in absent:
        del dense.depth_bin_regressor
    tasks = tuple(task for task in DENSE_TASKS if task in heads)
    return DenseHeads(model=dense, tasks=tasks, origin={})


def _kind(
    folder: Path, settings: dict[str, Any]
) -> tuple[type[PreTrainedModel], tuple[DenseTask, ...]]:
    named = settings.get("architectures") or [ALL_HEADS]
    if named == [ALL_HEADS]:
        return Tipsv2DptForDensePrediction, DENSE_TASKS
    for task, kind in SINGLE_HEADS.items():
        if named == [kind.__name__]:
            return kind, (task,)
    known = ", ".join([ALL_HEADS, *(kind.__name__ for kind in SINGLE_HEADS.values())])
    raise CheckpointError(
        f"{folder / CONFIG_FILE} names the architectures {named}, and dense heads are one of "
        f"{known}; download the current revision of the -dpt repository"
    )


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


def _head(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    starts = tuple(f"{prefix}{part}." for part in PARTS)
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(starts)
    }
