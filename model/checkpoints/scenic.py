"""Read dense heads from the Scenic (JAX) zips, such as `tips_v2_l14_depth_dpt.zip`.

Layout: one `.npy` for each parameter of the Flax decoder, named by its module path, such as
`decoder/dpt/reassemble_blocks/out_projection_0/kernel.npy`; the task's linear layer is
`decoder/pixel_segmentation`, `decoder/pixel_depth_classif` or `decoder/pixel_normals`.

Flax stores a convolution as [H, W, in, out] and a linear layer as [in, out]. Its transposed
convolution does not mirror the kernel as torch's does, so both kernel axes are flipped too.

The zips `..._dpt_pytorch.zip` are refused: upstream's converter did not mirror these kernels at
first, and a file does not show whether it is older than the fix.

The files do not state whether a ReLU follows the last 3 x 3 convolution of the depth head, so it is
a setting. The default is "linear", as the released decoder computes (`dpt_head_from_config` sets
`output_activation=False`); the other choice differed by up to 0.9 m. transformers' default for a
-dpt folder without the entry is "relu". The choice is written to the origin.

Source: google-deepmind/tips, `scripts/convert_segmentation_checkpoint.py`, and for all three tasks
`load_decoder_weights` of `pytorch/decoders.py` in its pull request 31.
"""

import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pydantic import JsonValue
from torch import Tensor
from transformers import (
    Tipsv2DptConfig,
    Tipsv2DptForDensePrediction,
    Tipsv2Model,
    Tipsv2VisionConfig,
)

from model.checkpoints.array_archive import ArrayArchive, require
from model.checkpoints.checkpoint import CheckpointError, digests, name_some
from model.checkpoints.dense_folder import attach_heads
from model.graphs import DENSE_TASKS, DenseTask, DepthActivation

ZIP_SUFFIX = "_dpt.zip"
LINEAR_AXES, CONVOLUTION_AXES = 2, 4
NUM_STAGES = 4
BLOCKS = "decoder/dpt/reassemble_blocks"
LINEAR_OF_TASK: dict[DenseTask, str] = {
    "depth": "decoder/pixel_depth_classif",
    "normals": "decoder/pixel_normals",
    "segmentation": "decoder/pixel_segmentation",
}


# From Flax's modules to transformers'; the first match counts. Flax numbers units in order of
# creation, and the first fusion block has no lateral unit.
NAMES: list[tuple[str, str]] = [
    (BLOCKS + r"/readout_projects_(\d)", r"neck.reassemble_stage.readout_projects.\1.layers.0"),
    (BLOCKS + r"/out_projection_(\d)", r"neck.reassemble_stage.layers.\1.projection"),
    (BLOCKS + r"/resize_layers_(\d)", r"neck.reassemble_stage.layers.\1.resize"),
    (r"decoder/dpt/convs_(\d)", r"neck.convs.\1"),
    (r"decoder/dpt/fusion_blocks_(\d)/Conv_0", r"neck.fusion_stage.layers.\1.projection"),
    (
        r"decoder/dpt/fusion_blocks_0/PreActResidualConvUnit_0/conv(\d)",
        r"neck.fusion_stage.layers.0.residual_layer2.convolution\1",
    ),
    (
        r"decoder/dpt/fusion_blocks_(\d)/PreActResidualConvUnit_0/conv(\d)",
        r"neck.fusion_stage.layers.\1.residual_layer1.convolution\2",
    ),
    (
        r"decoder/dpt/fusion_blocks_(\d)/PreActResidualConvUnit_1/conv(\d)",
        r"neck.fusion_stage.layers.\1.residual_layer2.convolution\2",
    ),
    ("decoder/dpt/project", "decoder.project"),
    *((linear, "decoder.head") for linear in LINEAR_OF_TASK.values()),
]
TRANSPOSED = re.compile(BLOCKS + r"/resize_layers_[01]")


def read_scenic_heads(
    paths: Sequence[Path], model: Tipsv2Model, *, depth_activation: DepthActivation = "linear"
) -> tuple[Tipsv2DptForDensePrediction, dict[str, JsonValue]]:
    """Read three zips and attach their heads to a model's vision tower.

    Args:
        paths: The zips, one for each task.
        model: The model that the heads were trained on; the zips do not hold its tower.
        depth_activation: Activation after the depth head's last convolution; see the module.

    Returns:
        The heads, see `attach_heads`, and their origin for the manifest.

    Raises:
        CheckpointError: A zip has another layout, is incomplete, or is for a tower of another size.
    """
    with ExitStack() as stack:
        archives: dict[DenseTask, ArrayArchive] = {}
        for path in paths:
            archive = stack.enter_context(ArrayArchive(path))
            task = _task(archive)
            if task in archives:
                raise CheckpointError(
                    f"{path} holds a head for {task}, and so does {archives[task].path.name}; keep "
                    "one of them"
                )
            archives[task] = archive
        if lacking := [task for task in DENSE_TASKS if task not in archives]:
            raise CheckpointError(
                f"{paths[0].parent} has no heads for {', '.join(lacking)}; a package needs all "
                "three or none: put the zips of all three into one folder, and name that folder"
            )
        config = _config(archives, model, depth_activation)
        weights = {
            f"{task}_{their_name(name)}": to_torch(name, archive.read(name))
            for task, archive in archives.items()
            for name in archive.shapes
        }
    origin: dict[str, JsonValue] = {
        "kind": "scenic-dpt",
        "files": dict(digests(paths)),
        "tasks": list(DENSE_TASKS),
        "depth_activation": depth_activation,
        "depth_activation_from": "the setting; the files do not state it",
    }
    return attach_heads(model, config, weights, path=paths[0].parent), origin


def _task(archive: ArrayArchive) -> DenseTask:
    tasks = [task for task in DENSE_TASKS if f"{LINEAR_OF_TASK[task]}/kernel" in archive.shapes]
    if len(tasks) != 1:
        raise CheckpointError(
            f"{archive.path} holds {name_some(archive.shapes)}, which is not one Scenic decoder "
            "for depth, normals or segmentation; use a tips_v2_..._dpt.zip of the release's scenic "
            "folder (a ..._dpt_pytorch.zip does not show whether its kernels are mirrored)"
        )
    return tasks[0]


def _config(
    archives: dict[DenseTask, ArrayArchive], model: Tipsv2Model, depth_activation: DepthActivation
) -> Tipsv2DptConfig:
    tower = model.vision_model.config
    for archive in archives.values():
        width = require(archive, f"{BLOCKS}/readout_projects_0/bias", 1)[0]
        if width != tower.hidden_size:
            raise CheckpointError(
                f"{archive.path} holds a head for a tower of width {width}, and the model's has "
                f"{tower.hidden_size}; take the file of the same variant"
            )
    first = archives["depth"]
    stages = [require(first, f"{BLOCKS}/out_projection_{i}/bias", 1)[0] for i in range(NUM_STAGES)]
    labels: dict[str, Any] = {"num_labels": _num_outputs(archives["segmentation"], "segmentation")}
    return Tipsv2DptConfig(
        backbone_config=_backbone_config(tower),
        neck_hidden_sizes=stages,
        fusion_hidden_size=require(first, "decoder/dpt/project/bias", 1)[0],
        num_depth_bins=_num_outputs(first, "depth"),
        depth_decoder_activation=depth_activation,
        **labels,
    )


def _num_outputs(archive: ArrayArchive, task: DenseTask) -> int:
    return require(archive, f"{LINEAR_OF_TASK[task]}/bias", 1)[0]


def _backbone_config(tower: Tipsv2VisionConfig) -> Tipsv2VisionConfig:
    depth = tower.num_hidden_layers
    if depth < NUM_STAGES:
        raise CheckpointError(
            f"the model has {depth} layers, but dense heads read {NUM_STAGES}; use the model "
            "that the heads were trained on"
        )
    settings = tower.to_dict()
    for name in ("out_features", "out_indices", "stage_names"):
        settings.pop(name, None)
    # Quarters of the depth, rounded up: 3, 6, 9, 12 of B and 7, 14, 21, 27 of SO400m.
    out_indices = [-(-depth * i // NUM_STAGES) for i in range(1, NUM_STAGES + 1)]
    return Tipsv2VisionConfig.from_dict(
        settings
        | {"out_indices": out_indices, "apply_layernorm": True, "reshape_hidden_states": False}
    )


def their_name(name: str) -> str:
    """Transformers' name of a head's parameter in a zip; one that is unknown stays."""
    module, _, leaf = name.rpartition("/")
    for pattern, replacement in NAMES:
        if found := re.fullmatch(pattern, module):
            return f"{found.expand(replacement)}.{'weight' if leaf == 'kernel' else leaf}"
    return name


def to_torch(name: str, value: Tensor) -> Tensor:
    """Order the axes of a kernel as torch has them; biases stay."""
    if value.ndim == LINEAR_AXES:
        return value.permute(1, 0)
    if value.ndim != CONVOLUTION_AXES:
        return value
    if TRANSPOSED.match(name):
        return value.flip(0, 1).permute(2, 3, 0, 1)
    return value.permute(3, 2, 0, 1)
