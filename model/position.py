"""Resize position embeddings to any patch grid with operators that every runtime has.

transformers resizes its grid with `interpolate(antialias=True)` to a size that becomes a constant
when the model is traced, and TensorRT's parser rejects that operator. The same filter written as
matrices stays free in height and width.

Shapes: B batch, N patches, D embedding width, H W pixels, h w patch rows and columns.
"""

import torch
from torch import Tensor
from transformers.models.tipsv2.modeling_tipsv2 import Tipsv2VisionEmbeddings


def antialias_matrix(size_in: int, size_out: int) -> Tensor:
    """Weights [size_out, size_in] of a triangle filter as wide as one output step; rows sum to 1.

    `size_out` may be symbolic while the model is exported. float32.
    """
    scale = size_in / torch.full((), size_out, dtype=torch.float32)
    centres_out = (torch.arange(size_out, dtype=torch.float32) + 0.5) * scale
    centres_in = torch.arange(size_in, dtype=torch.float32) + 0.5
    distance = (centres_in[None, :] - centres_out[:, None]).abs() / scale.clamp(min=1)
    weights = (1 - distance).clamp(min=0)
    return weights / weights.sum(dim=1, keepdim=True)


def resize_grid(grid_ND: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """Resize a square grid of vectors to [h * w, D], bilinear with antialiasing.

    Computed in float32, returned in the dtype and on the device of the input. Equal to torch's
    `interpolate(mode="bilinear", antialias=True, align_corners=False)`.
    """
    side = round(grid_ND.shape[0] ** 0.5)
    grid_hwD = grid_ND.reshape(side, side, -1).float()
    rows = antialias_matrix(side, grid_hw[0]).to(grid_ND.device)
    columns = antialias_matrix(side, grid_hw[1]).to(grid_ND.device)
    tall = torch.tensordot(rows, grid_hwD, dims=([1], [0]))
    resized = torch.matmul(columns, tall)
    return resized.flatten(0, 1).to(grid_ND.dtype)


def embed_pixels(
    embeddings: Tipsv2VisionEmbeddings, pixels_B3HW: Tensor, masked_BN: Tensor | None = None
) -> Tensor:
    """Tokens [B, 2 + N, D] that enter the first block: two CLS tokens, then patches row by row.

    The same as transformers' `Tipsv2VisionEmbeddings.forward`, but traceable with free H and W.

    Args:
        embeddings: Embedding layer of a Tipsv2Model's vision tower.
        pixels_B3HW: RGB in [0, 1]; H and W multiples of the patch size.
        masked_BN: bool; patches to replace by the mask token, before positions are added.
    """
    patch_height, patch_width = embeddings.patch_embeddings.projection.stride
    grid_hw = pixels_B3HW.shape[2] // patch_height, pixels_B3HW.shape[3] // patch_width
    patches_BND = embeddings.patch_embeddings(pixels_B3HW)
    if masked_BN is not None:
        patches_BND = torch.where(masked_BN[..., None], embeddings.mask_token, patches_BND)
    positions_1ND = embeddings.position_embeddings
    patches_BND = patches_BND + resize_grid(positions_1ND[0, 1:], grid_hw)
    batch = pixels_B3HW.shape[0]
    cls1_B1D = (embeddings.cls_token + positions_1ND[:, :1]).expand(batch, -1, -1)
    cls2_B1D = embeddings.register_tokens.expand(batch, -1, -1)
    return torch.cat((cls1_B1D, cls2_B1D, patches_BND), dim=1)
