"""A frozen EfficientNet-Lite0 (ImageNet, Apache-2.0) as a source of patch features.

The image is enlarged until one cell of the network covers one patch of the student. On a CPU the
network runs in OpenVINO, which takes a tenth of torch's time for its depthwise convolutions.

Shapes: B images, H W their pixels, N patches, M samples, F the features' width, K the reduced
width, ... any leading sizes.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from model.efficientnet_lite import STRIDE as CELL_PIXELS
from model.efficientnet_lite import Trunk
from training.checkpoint import save_atomically
from training.pretrained.compiled import Compiled, compile_network
from training.pretrained.weights import load_trunk

PATCH_PIXELS = 14
BASIS_FILE = "image-backbone-basis.pt"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Basis:
    """Mean and leading principal axes of features.

    Attributes:
        mean_F: float32; subtracted first.
        axes_FK: float32; each axis is divided by the root of its singular value (half whitening),
            so that large directions stay larger, but less so.
    """

    mean_F: Tensor
    axes_FK: Tensor

    def reduce(self, features_F: Tensor) -> Tensor:
        """Reduce features [..., F] to [..., K]."""
        mean_F, axes_FK = (part.to(features_F.device) for part in (self.mean_F, self.axes_FK))
        reduced_K: Tensor = (features_F - mean_F) @ axes_FK
        return reduced_K


def fit_basis(features_MF: Tensor, width: int) -> Basis:
    """Fit the axes to samples.

    Args:
        features_MF: float32; at least as many rows as `width`.
        width: K.

    Raises:
        ValueError: Fewer samples or features than axes.
    """
    if min(features_MF.shape) < width:
        raise ValueError(f"{width} axes need as many samples and features, not {features_MF.shape}")
    mean_F = features_MF.mean(0)
    _, spread, axes = torch.linalg.svd(features_MF - mean_F, full_matrices=False)
    scale_K = spread[:width].clamp(min=1e-6).rsqrt()
    return Basis(mean_F=mean_F, axes_FK=axes[:width].T * scale_K)


class FrozenImageBackbone:
    """The network: in OpenVINO for images on the CPU, in torch for images on a GPU."""

    def __init__(self) -> None:
        self._cells = _network()

    @torch.no_grad()
    def encode_patches(self, pixels_B3HW: Tensor) -> Tensor:
        """Features of each patch: float32 [B, N, F], patches in row-major order.

        Args:
            pixels_B3HW: float32 in [0, 1]; H and W multiples of 14.
        """
        rows, columns = (side // PATCH_PIXELS for side in pixels_B3HW.shape[2:])
        size = (rows * CELL_PIXELS, columns * CELL_PIXELS)
        large_B3HW = F.interpolate(pixels_B3HW.float(), size, mode="bilinear")
        if large_B3HW.device.type == "cpu":
            (cells,) = _compiled(tuple(large_B3HW.shape))(large_B3HW.numpy())
            cells_BFhw = torch.from_numpy(cells)
        else:
            cells_BFhw = self._cells.to(large_B3HW.device)(large_B3HW)
        return cells_BFhw.flatten(2).transpose(1, 2)


@cache
def _network() -> Trunk:
    return load_trunk()[0].requires_grad_(requires_grad=False)


# Kept for the life of the process: after OpenVINO's networks were freed, forked processes, such as
# those that load data, were seen to read wrong numbers.
@cache
def _compiled(shape: tuple[int, ...]) -> Compiled:
    return compile_network(_network(), shape, num_threads=torch.get_num_threads())


@dataclass(frozen=True, slots=True, eq=False)
class ImageBackboneTargets:
    """Patch targets for a student: the backbone's features reduced to K numbers."""

    backbone: FrozenImageBackbone
    basis: Basis

    def patch_targets(self, pixels_B3HW: Tensor) -> Tensor:
        """Targets [B, N, K], float32, not normalised; see `FrozenImageBackbone.encode_patches`."""
        features_BNF = self.backbone.encode_patches(pixels_B3HW)
        return self.basis.reduce(features_BNF)


def load_image_backbone(folder: Path, images: Iterable[Tensor], width: int) -> ImageBackboneTargets:
    """Load the backbone, with `width` axes fitted to a run's own images.

    The axes are kept in the run's folder, so that a resumed run has the same.
    """
    backbone = FrozenImageBackbone()
    path = folder / BASIS_FILE
    if not path.exists():
        means_MF = torch.cat([backbone.encode_patches(pixels).mean(1) for pixels in images])
        save_atomically(asdict(fit_basis(means_MF, width)), path)
    basis = Basis(**torch.load(path, map_location="cpu", weights_only=True))
    return ImageBackboneTargets(backbone, basis)
