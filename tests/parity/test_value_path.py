"""Value-path patches against a second computation, in NumPy and float64.

The steps are those of the reference's zero-shot segmentation: all blocks but the last as usual;
in the last, x' = x + ls1(proj(v)) with v = V(norm1(x)), x'' = x' + ls2(mlp(norm2(x'))); then the
final LayerNorm, and the first two tokens are dropped.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Tipsv2Model

from model.features import vision_features

Array = NDArray[np.float64]


def layer_norm(x: Array, weight: Array, bias: Array) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    normed: Array = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)
    return normed * weight + bias


def gelu(x: Array) -> Array:
    erf: Array = np.vectorize(math.erf)(x / math.sqrt(2))
    return 0.5 * x * (1 + erf)


def recomputed(model: Tipsv2Model, pixels_B3HW: torch.Tensor) -> Array:
    """Value-path patches [B, N, D] from the raw weights of the last block."""
    entering: list[torch.Tensor] = []
    last = model.vision_model.encoder.layer[-1]
    handle = last.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0]))
    model.vision_model(pixel_values=pixels_B3HW)
    handle.remove()
    weights = {
        name: tensor.double().numpy() for name, tensor in model.vision_model.state_dict().items()
    }

    def block(name: str) -> tuple[Array, Array]:
        prefix = f"encoder.layer.1.{name}"
        return weights[f"{prefix}.weight"], weights[f"{prefix}.bias"]

    def linear(x: Array, name: str) -> Array:
        weight, bias = block(name)
        product: Array = x @ weight.T + bias
        return product

    x = entering[0].double().numpy()
    value = linear(layer_norm(x, *block("norm1")), "attention.v_proj")
    x = x + linear(value, "attention.o_proj") * weights["encoder.layer.1.layer_scale1.lambda1"]
    hidden = gelu(linear(layer_norm(x, *block("norm2")), "mlp.fc1"))
    x = x + linear(hidden, "mlp.fc2") * weights["encoder.layer.1.layer_scale2.lambda1"]
    return layer_norm(x, weights["layernorm.weight"], weights["layernorm.bias"])[:, 2:]


@torch.no_grad()
def test_values_are_the_recomputed_ones_and_patches_are_not(tiny_model: Tipsv2Model) -> None:
    pixels_B3HW = torch.rand(2, 3, 42, 70, generator=torch.Generator().manual_seed(0))
    features = vision_features(tiny_model, pixels_B3HW)
    expected_BND = recomputed(tiny_model, pixels_B3HW)
    np.testing.assert_allclose(features.values_BND.numpy(), expected_BND, atol=1e-5)
    assert np.abs(features.patches_BND.numpy() - expected_BND).max() > 0.01
