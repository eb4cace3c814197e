"""Reads the installed EfficientNet-Lite0 (ImageNet, Apache-2.0) into our own network.

Shapes: F = 1280 features.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from model.efficientnet_lite import Trunk
from training.pretrained.weights import EFFICIENTNET, weights_file

_BATCH_NORM_EPSILON = 1e-3


def _folded(weights: Mapping[str, Tensor], conv: str, norm: str) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with the batch normalisation after it."""
    variance = weights[f"{norm}.running_var"] + _BATCH_NORM_EPSILON
    scale = weights[f"{norm}.weight"] / variance.sqrt()
    bias = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale
    return weights[f"{conv}.weight"] * scale[:, None, None, None], bias


def _layers(trunk: Trunk) -> Iterator[tuple[nn.Module, str, str]]:
    """Each convolution with the package's names of it and of its normalisation."""
    yield trunk.stem, "_conv_stem", "_bn0"
    for number, block in enumerate(trunk.blocks):
        parts = [("depthwise", "_depthwise_conv"), ("project", "_project_conv")]
        norms = ["_bn1", "_bn2"]
        if block.expand is not None:
            parts.insert(0, ("expand", "_expand_conv"))
            norms.insert(0, "_bn0")
        for (part, conv), norm in zip(parts, norms, strict=True):
            yield getattr(block, part), f"_blocks.{number}.{conv}", f"_blocks.{number}.{norm}"
    yield trunk.head, "_conv_head", "_bn1"


def load_trunk() -> tuple[Trunk, Tensor, Tensor]:
    """Read the package's weights.

    Returns:
        The network, and its classifier's weights [1000, F] and biases [1000].
    """
    weights = torch.load(weights_file(EFFICIENTNET), map_location="cpu", weights_only=True)
    trunk = Trunk()
    for layer, conv, norm in _layers(trunk):
        weight, bias = _folded(weights, conv, norm)
        layer.load_state_dict({"weight": weight, "bias": bias})
    return trunk.eval(), weights["_fc.weight"], weights["_fc.bias"]
