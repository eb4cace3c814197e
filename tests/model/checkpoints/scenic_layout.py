"""Write dense heads of small models as Scenic zips.

Written from upstream's Flax modules and not from the reader, so that tests find a mistake in
either.
"""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    Tipsv2DptConfig,
    Tipsv2DptForDensePrediction,
    Tipsv2Model,
    Tipsv2VisionConfig,
)

from model.graphs import DenseTask
from tests.model.checkpoints.official_layout import Arrays, array

LINEAR = {
    "depth": "pixel_depth_classif",
    "normals": "pixel_normals",
    "segmentation": "pixel_segmentation",
}
NUM_BINS, NUM_CLASSES, FUSION = 12, 5, 16


def dense_model(
    model: Tipsv2Model, *, depth_activation: str = "relu"
) -> Tipsv2DptForDensePrediction:
    """Three random heads over a copy of a model's vision tower of four layers."""
    settings = model.vision_model.config.to_dict()
    for name in ("out_features", "out_indices", "stage_names"):
        settings.pop(name, None)
    width = settings["hidden_size"]
    labels: dict[str, Any] = {"num_labels": NUM_CLASSES}
    config = Tipsv2DptConfig(
        backbone_config=Tipsv2VisionConfig.from_dict(
            settings
            | {"out_indices": [1, 2, 3, 4], "apply_layernorm": True, "reshape_hidden_states": False}
        ),
        neck_hidden_sizes=[width // 8, width // 4, width // 2, width],
        fusion_hidden_size=FUSION,
        num_depth_bins=NUM_BINS,
        depth_decoder_activation=depth_activation,
        **labels,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        dense = Tipsv2DptForDensePrediction(config)
        for parameter in dense.parameters():
            # Small steps keep three stages of fusion from growing beyond what 1e-5 can tell apart.
            parameter.copy_(0.05 * torch.randn_like(parameter))
        dense.backbone.load_state_dict(model.vision_model.state_dict())
    dense.eval()
    return dense


def scenic_arrays(dense: Tipsv2DptForDensePrediction, task: DenseTask) -> Arrays:
    """One head as the parameters of upstream's Flax decoder, by their paths."""
    neck, decoder = getattr(dense, f"{task}_neck"), getattr(dense, f"{task}_decoder")
    blocks = "decoder/dpt/reassemble_blocks"
    stage = neck.reassemble_stage
    arrays: Arrays = {}
    for i in range(4):
        arrays |= linear(f"{blocks}/readout_projects_{i}", stage.readout_projects[i].layers[0])
        arrays |= conv(f"{blocks}/out_projection_{i}", stage.layers[i].projection)
        arrays |= conv(f"decoder/dpt/convs_{i}", neck.convs[i])
        arrays |= fusion_block(f"decoder/dpt/fusion_blocks_{i}", neck.fusion_stage.layers[i])
    arrays |= conv_transpose(f"{blocks}/resize_layers_0", stage.layers[0].resize)
    arrays |= conv_transpose(f"{blocks}/resize_layers_1", stage.layers[1].resize)
    arrays |= conv(f"{blocks}/resize_layers_3", stage.layers[3].resize)
    arrays |= conv("decoder/dpt/project", decoder.project)
    return arrays | linear(f"decoder/{LINEAR[task]}", decoder.head)


def fusion_block(to: str, block: Any) -> Arrays:
    """Flax numbers the units in order of calls: first the lateral one, if any."""
    units = [block.residual_layer1, block.residual_layer2]
    if isinstance(block.residual_layer1, nn.Identity):
        units = units[1:]
    arrays = conv(f"{to}/Conv_0", block.projection)
    for i, unit in enumerate(units):
        arrays |= conv(f"{to}/PreActResidualConvUnit_{i}/conv1", unit.convolution1)
        arrays |= conv(f"{to}/PreActResidualConvUnit_{i}/conv2", unit.convolution2)
    return arrays


def write_arrays(path: Path, arrays: Arrays) -> Path:
    """Write a zip of .npy under the arrays' paths."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in arrays.items():
            content = io.BytesIO()
            np.save(content, value, allow_pickle=False)
            archive.writestr(f"{name}.npy", content.getvalue())
    return path


def with_bias(to: str, kernel: torch.Tensor, module: Any) -> Arrays:
    """A kernel and its bias, if any."""
    arrays = {f"{to}/kernel": array(kernel)}
    bias = module.bias
    return arrays if bias is None else arrays | {f"{to}/bias": array(bias)}


def linear(to: str, module: Any) -> Arrays:
    """[out, in] to [in, out]."""
    return with_bias(to, module.weight.T, module)


def conv(to: str, module: Any) -> Arrays:
    """[out, in, H, W] to [H, W, in, out]."""
    return with_bias(to, torch.einsum("oihw->hwio", module.weight), module)


def conv_transpose(to: str, module: Any) -> Arrays:
    """[in, out, H, W], mirrored, to [H, W, in, out]."""
    return with_bias(to, torch.einsum("iohw->hwio", module.weight.flip(2, 3)), module)
