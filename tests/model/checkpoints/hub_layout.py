"""Names the tensors of small dense models as the hub's first -dpt files do, for the tests.

These are upstream's names, with the tower's and the task's in front; transformers knows them.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import Tipsv2DptForDensePrediction

from model.graphs import DENSE_TASKS
from tests.model.checkpoints.official_layout import tower_arrays


def hub_tensors(dense: Tipsv2DptForDensePrediction) -> dict[str, Tensor]:
    """Backbone and three heads."""
    tensors = {
        f"vision_encoder.{name}": torch.from_numpy(values)
        for name, values in tower_arrays(dense.backbone).items()
    }
    for task in DENSE_TASKS:
        decoder: Any = getattr(dense, f"{task}_decoder")
        modules = neck_modules(getattr(dense, f"{task}_neck"))
        modules |= {"project": decoder.project, f"{task}_head": decoder.head}
        for name, module in modules.items():
            for leaf, tensor in module.state_dict().items():
                tensors[f"{task}_head.{name}.{leaf}"] = tensor.contiguous().clone()
    return tensors


def neck_modules(neck: Any) -> dict[str, Any]:
    """Modules with weights by upstream's names."""
    modules: dict[str, Any] = {}
    stage = neck.reassemble_stage
    for i, block in enumerate(neck.fusion_stage.layers):
        modules |= {
            f"convs.{i}": neck.convs[i],
            f"reassemble.out_projections.{i}": stage.layers[i].projection,
            f"reassemble.readout_projects.{i}": stage.readout_projects[i].layers[0],
            f"reassemble.resize_layers.{i}": stage.layers[i].resize,
            f"fusion_blocks.{i}.out_conv": block.projection,
            f"fusion_blocks.{i}.main_unit.conv1": block.residual_layer2.convolution1,
            f"fusion_blocks.{i}.main_unit.conv2": block.residual_layer2.convolution2,
        }
        if i > 0:
            modules[f"fusion_blocks.{i}.residual_unit.conv1"] = block.residual_layer1.convolution1
            modules[f"fusion_blocks.{i}.residual_unit.conv2"] = block.residual_layer1.convolution2
    return modules
