"""EfficientNet-Lite0 without its classifier, in plain torch, with folded batch normalisation.

Shapes: B images, C channels, F = 1280 features, H W pixels, h w cells.
"""

from typing import Final, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

FEATURE_WIDTH: Final = 1280
STRIDE: Final = 32
_STEM_WIDTH = 32


class _Stage(NamedTuple):
    expansion: int
    width: int
    repeats: int
    stride: int
    kernel: int


# Source: the Lite0 configuration of tensorflow/tpu, models/official/efficientnet/lite.
_STAGES = (
    _Stage(1, 16, 1, 1, 3), _Stage(6, 24, 2, 2, 3), _Stage(6, 40, 2, 2, 5), _Stage(6, 80, 3, 2, 3),
    _Stage(6, 112, 3, 1, 5), _Stage(6, 192, 4, 2, 5), _Stage(6, 320, 1, 1, 3),
)  # fmt: skip


class _SameConv(nn.Conv2d):
    """A convolution with TensorFlow's "same" padding, for sides that the stride divides."""

    def __init__(
        self, width_in: int, width_out: int, kernel: int, *, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(width_in, width_out, kernel, stride, groups=groups)
        total = kernel - stride
        self.before, self.after = total // 2, total - total // 2

    def forward(self, x_BCHW: Tensor) -> Tensor:
        padded_BCHW = F.pad(x_BCHW, (self.before, self.after, self.before, self.after))
        return super().forward(padded_BCHW)


class _Block(nn.Module):
    """An inverted residual block."""

    def __init__(self, width_in: int, stage: _Stage, stride: int) -> None:
        super().__init__()
        width = width_in * stage.expansion
        self.expand = _SameConv(width_in, width, 1) if stage.expansion > 1 else None
        self.depthwise = _SameConv(width, width, stage.kernel, stride=stride, groups=width)
        self.project = _SameConv(width, stage.width, 1)
        self.is_residual = stride == 1 and width_in == stage.width

    def forward(self, input_BCHW: Tensor) -> Tensor:
        x_BCHW = input_BCHW if self.expand is None else F.relu6(self.expand(input_BCHW))
        output_BCHW: Tensor = self.project(F.relu6(self.depthwise(x_BCHW)))
        return output_BCHW + input_BCHW if self.is_residual else output_BCHW


class Trunk(nn.Module):
    """The network: [B, 3, H, W] in [0, 1] to cells [B, F, H / 32, W / 32]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _SameConv(3, _STEM_WIDTH, 3, stride=2)
        blocks, width = [], _STEM_WIDTH
        for stage in _STAGES:
            for repeat in range(stage.repeats):
                blocks.append(_Block(width, stage, stage.stride if repeat == 0 else 1))
                width = stage.width
        self.blocks = nn.ModuleList(blocks)
        self.head = _SameConv(width, FEATURE_WIDTH, 1)

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """Normalise the pixels as in the network's training, and run it."""
        x_BCHW = F.relu6(self.stem(pixels_B3HW * (255 / 128) - 127 / 128))
        for block in self.blocks:
            x_BCHW = block(x_BCHW)
        cells_BFhw: Tensor = F.relu6(self.head(x_BCHW))
        return cells_BFhw
