"""The released decoder's arithmetic on the arrays of a Scenic zip, apart from transformers' code.

Written from the published description: readout, reassembly, fusion from the deepest stage, one
convolution and one linear layer.

Shapes: B images, D width, C channels, h w patch rows and columns.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Tipsv2Model

from tests.model.checkpoints.official_layout import Arrays
from tests.model.checkpoints.scenic_layout import LINEAR

STAGES = range(4)
NEAREST_M, FARTHEST_M = 0.001, 10.0


Stages = list[tuple[Tensor, Tensor]]


def depth_in_metres(arrays: Arrays, stages: Stages, *, activation: bool) -> Tensor:
    """Depth [B, 8 h, 8 w] of a head on four blocks of a tower.

    Args:
        arrays: Parameters of the Flax decoder.
        stages: See `taps`.
        activation: Whether a ReLU follows the last convolution (`output_activation`).
    """
    output_BhwK = decode(arrays, "depth", stages, activation=activation)
    weight_BhwK = output_BhwK.relu() + NEAREST_M
    share_BhwK = weight_BhwK / weight_BhwK.sum(dim=-1, keepdim=True)
    return share_BhwK @ torch.linspace(NEAREST_M, FARTHEST_M, output_BhwK.shape[-1])


def taps(model: Tipsv2Model, pixels_B3HW: Tensor) -> Stages:
    """Of each block the first CLS token [B, D] and the patches [B, D, h, w], both normalised."""
    tower = model.vision_model
    rows, columns = (side // 14 for side in pixels_B3HW.shape[2:])
    hidden = tower(pixels_B3HW, output_hidden_states=True).hidden_states[1:]
    found = []
    for block_BTD in map(tower.layernorm, hidden):
        patches_BDN = block_BTD[:, 2:].transpose(1, 2)
        found.append((block_BTD[:, 0], patches_BDN.unflatten(2, (rows, columns))))
    return found


def decode(arrays: Arrays, task: str, stages: Stages, *, activation: bool) -> Tensor:
    """Output of the task's linear layer, [B, 8 h, 8 w, channels]."""
    weights = {name: torch.from_numpy(value) for name, value in arrays.items()}
    maps = [
        conv(weights, f"decoder/dpt/convs_{stage}", reassemble(weights, stage, *stages[stage]))
        for stage in STAGES
    ]
    fused = maps[-1]
    for block in STAGES:
        name = f"decoder/dpt/fusion_blocks_{block}"
        unit = f"{name}/PreActResidualConvUnit_0"
        if block > 0:
            lateral = maps[-1 - block]
            if lateral.shape != fused.shape:
                lateral = F.interpolate(lateral, fused.shape[2:], mode="bilinear")
            fused = fused + residual(weights, unit, lateral)
            unit = f"{name}/PreActResidualConvUnit_1"
        fused = residual(weights, unit, fused)
        fused = F.interpolate(fused, scale_factor=2, mode="bilinear", align_corners=True)
        fused = conv(weights, f"{name}/Conv_0", fused)
    projected = conv(weights, "decoder/dpt/project", fused)
    if activation:
        projected = projected.relu()
    return linear(weights, f"decoder/{LINEAR[task]}", projected.permute(0, 2, 3, 1))


def reassemble(
    weights: dict[str, Tensor], stage: int, cls_BD: Tensor, patches_BDhw: Tensor
) -> Tensor:
    """One stage's channels at four times, twice, once and half the patch grid."""
    blocks = "decoder/dpt/reassemble_blocks"
    patches_BhwD = patches_BDhw.permute(0, 2, 3, 1)
    cls_BhwD = cls_BD[:, None, None].expand(patches_BhwD.shape)
    both_BhwE = torch.cat([patches_BhwD, cls_BhwD], dim=-1)
    read_BhwD = linear(weights, f"{blocks}/readout_projects_{stage}", both_BhwE)
    read_BhwD = F.gelu(read_BhwD, approximate="tanh")
    map_BChw = conv(weights, f"{blocks}/out_projection_{stage}", read_BhwD.permute(0, 3, 1, 2))
    name = f"{blocks}/resize_layers_{stage}"
    if stage < 2:
        kernel_HWio, bias = weights[f"{name}/kernel"], weights[f"{name}/bias"]
        kernel_ioHW = kernel_HWio.flip(0, 1).permute(2, 3, 0, 1)
        return F.conv_transpose2d(map_BChw, kernel_ioHW, bias, stride=kernel_HWio.shape[0])
    return conv(weights, name, map_BChw, stride=2) if stage == 3 else map_BChw


def residual(weights: dict[str, Tensor], name: str, map_BChw: Tensor) -> Tensor:
    """Two convolutions, each after a ReLU, added to what enters."""
    inner = conv(weights, f"{name}/conv1", map_BChw.relu())
    return map_BChw + conv(weights, f"{name}/conv2", inner.relu())


def conv(weights: dict[str, Tensor], name: str, map_BChw: Tensor, *, stride: int = 1) -> Tensor:
    """A convolution that keeps the size, or halves it."""
    kernel_oiHW = weights[f"{name}/kernel"].permute(3, 2, 0, 1)
    bias = weights.get(f"{name}/bias")
    return F.conv2d(map_BChw, kernel_oiHW, bias, stride=stride, padding=kernel_oiHW.shape[2] // 2)


def linear(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """A linear layer on the last axis."""
    return x @ weights[f"{name}/kernel"] + weights[f"{name}/bias"]
