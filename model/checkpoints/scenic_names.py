"""What the Scenic decoders call the tensors of transformers' dense heads, and how Flax stores them.

Flax stores a convolution as [H, W, in, out] and a linear layer as [in, out]. Its transposed
convolution slides the kernel as it is where torch's mirrors it, so both axes are flipped as well.
Where the names are from is told in `model.checkpoints.scenic_heads`.
"""

import re
from collections.abc import Iterable

from torch import Tensor

from model.checkpoints.weight_map import Change, Source, as_stored
from model.graphs import DenseTask

BLOCKS = "decoder/dpt/reassemble_blocks"
LINEAR_OF_TASK: dict[DenseTask, str] = {
    "depth": "decoder/pixel_depth_classif",
    "normals": "decoder/pixel_normals",
    "segmentation": "decoder/pixel_segmentation",
}


def _dense(kernel: Tensor) -> Tensor:
    return kernel.permute(1, 0)


def _conv(kernel: Tensor) -> Tensor:
    return kernel.permute(3, 2, 0, 1)


def _conv_transpose(kernel: Tensor) -> Tensor:
    return kernel.flip(0, 1).permute(2, 3, 0, 1)


# Ours, theirs, and what becomes of the kernel; the two transposed convolutions come first.
NAMES: list[tuple[str, str, Change]] = [
    (
        r"neck\.reassemble_stage\.readout_projects\.(\d)\.layers\.0",
        BLOCKS + r"/readout_projects_\1",
        _dense,
    ),
    (r"neck\.reassemble_stage\.layers\.(\d)\.projection", BLOCKS + r"/out_projection_\1", _conv),
    (
        r"neck\.reassemble_stage\.layers\.([01])\.resize",
        BLOCKS + r"/resize_layers_\1",
        _conv_transpose,
    ),
    (r"neck\.reassemble_stage\.layers\.(\d)\.resize", BLOCKS + r"/resize_layers_\1", _conv),
    (r"neck\.convs\.(\d)", r"decoder/dpt/convs_\1", _conv),
    (
        r"neck\.fusion_stage\.layers\.(\d)\.projection",
        r"decoder/dpt/fusion_blocks_\1/Conv_0",
        _conv,
    ),
    # Flax numbers the units of a block as they are made, and the first block has no lateral one.
    (
        r"neck\.fusion_stage\.layers\.(0)\.residual_layer2\.convolution(\d)",
        r"decoder/dpt/fusion_blocks_\1/PreActResidualConvUnit_0/conv\2",
        _conv,
    ),
    (
        r"neck\.fusion_stage\.layers\.(\d)\.residual_layer1\.convolution(\d)",
        r"decoder/dpt/fusion_blocks_\1/PreActResidualConvUnit_0/conv\2",
        _conv,
    ),
    (
        r"neck\.fusion_stage\.layers\.(\d)\.residual_layer2\.convolution(\d)",
        r"decoder/dpt/fusion_blocks_\1/PreActResidualConvUnit_1/conv\2",
        _conv,
    ),
    (r"decoder\.project", "decoder/dpt/project", _conv),
]


def head_sources(names: Iterable[str], task: DenseTask) -> dict[str, Source]:
    """Where each tensor of a head comes from.

    Args:
        names: Of the head's tensors, `neck...` and `decoder...`.
        task: Whose head it is.
    """
    return {name: _source(name, task) for name in names}


def _source(name: str, task: DenseTask) -> Source:
    module, _, leaf = name.rpartition(".")
    changes = [*NAMES, (r"decoder\.head", LINEAR_OF_TASK[task], _dense)]
    for pattern, replacement, change in changes:
        found = re.fullmatch(pattern, module)
        if found:
            theirs = found.expand(replacement)
            is_kernel = leaf == "weight"
            applied: Change = change if is_kernel else as_stored
            return Source(f"{theirs}/{'kernel' if is_kernel else 'bias'}", applied)
    raise AssertionError(f"no name for {name}")
