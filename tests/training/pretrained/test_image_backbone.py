"""The frozen image backbone: features for each patch, equal in OpenVINO and torch."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from model.efficientnet_lite import FEATURE_WIDTH
from training.pretrained.image_backbone import (
    BASIS_FILE,
    FrozenImageBackbone,
    fit_basis,
    load_image_backbone,
)


def test_reduced_samples_are_centred_uncorrelated_and_half_whitened() -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([9.0, 5, 3, 1, 0.5, 0.1])
    features_MF = torch.randn(50, 6, generator=generator) * spread + 7.0
    reduced_MK = fit_basis(features_MF, 3).reduce(features_MF)
    assert reduced_MK.shape == (50, 3)
    assert reduced_MK.mean(0).abs().max() < 1e-4
    # Each component is divided by the root of its spread, so its square sum is that spread.
    expected = torch.linalg.svdvals(features_MF - features_MF.mean(0))[:3]
    torch.testing.assert_close(reduced_MK.T @ reduced_MK, expected.diag(), rtol=1e-3, atol=1e-3)


def test_reduction_is_affine() -> None:
    generator = torch.Generator().manual_seed(0)
    basis = fit_basis(torch.randn(40, 8, generator=generator), 4)
    cells_BNF = torch.randn(2, 5, 8, generator=generator)
    torch.testing.assert_close(basis.reduce(cells_BNF).mean(1), basis.reduce(cells_BNF.mean(1)))


@pytest.mark.parametrize(("samples", "features"), [(3, 8), (8, 3)])
def test_more_axes_than_samples_or_features_are_refused(samples: int, features: int) -> None:
    with pytest.raises(ValueError, match="4 axes need"):
        fit_basis(torch.randn(samples, features), 4)


@pytest.fixture(scope="module")
def backbone() -> FrozenImageBackbone:
    """The real network."""
    return FrozenImageBackbone()


def test_there_is_a_cell_for_each_patch_in_row_major_order(backbone: FrozenImageBackbone) -> None:
    pixels_B3HW = torch.full((1, 3, 56, 84), 0.5)
    flat_BNF = backbone.encode_patches(pixels_B3HW)
    assert flat_BNF.shape == (1, 4 * 6, FEATURE_WIDTH)
    assert flat_BNF.dtype == torch.float32
    corners = {0: (0, 0), 5: (0, 70), 18: (42, 0), 23: (42, 70)}
    for corner, (top, left) in corners.items():
        marked = pixels_B3HW.clone()
        marked[..., top : top + 14, left : left + 14] = 0.0
        change_N = (backbone.encode_patches(marked) - flat_BNF).norm(dim=-1)[0]
        # A cell sees beyond its patch, so neighbours change as well; other corners least.
        assert max(corners, key=lambda index: float(change_N[index])) == corner


def test_openvino_and_torch_give_the_same_features(backbone: FrozenImageBackbone) -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 3, 4, 4, generator=generator)
    pixels_B3HW = F.interpolate(coarse, (56, 56), mode="bicubic").clamp(0, 1)
    large = F.interpolate(pixels_B3HW, (128, 128), mode="bilinear")
    expected_BNF = backbone._cells(large).flatten(2).transpose(1, 2)
    cosine_BN = F.cosine_similarity(backbone.encode_patches(pixels_B3HW), expected_BNF, dim=-1)
    assert cosine_BN.min() > 0.98  # bfloat16 where the CPU has it


def test_features_are_float32_under_autocast(backbone: FrozenImageBackbone) -> None:
    pixels_B3HW = torch.rand(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = backbone.encode_patches(pixels_B3HW)
    assert within.dtype == torch.float32
    torch.testing.assert_close(within, backbone.encode_patches(pixels_B3HW))


def test_axes_are_fitted_once_and_kept(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 2, 3, 28, 28, generator=generator)
    first = load_image_backbone(tmp_path, images, 5)
    again = load_image_backbone(tmp_path, (), 5)
    targets_BNK = first.patch_targets(images[0])
    assert targets_BNK.shape == (2, 4, 5)
    torch.testing.assert_close(again.patch_targets(images[0]), targets_BNK)
    # The images that the axes were fitted to lie around their origin.
    means_MK = torch.cat([first.patch_targets(pixels_B3HW).mean(1) for pixels_B3HW in images])
    assert means_MK.mean(0).norm() < 0.05 * means_MK.norm(dim=1).mean()
    assert [file.name for file in tmp_path.iterdir()] == [BASIS_FILE]
