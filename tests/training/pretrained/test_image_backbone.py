"""The frozen image backbone: features for each patch, equal in OpenVINO and torch."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from training.pretrained import weights
from training.pretrained.image_backbone import (
    BASIS_FILE,
    FrozenImageBackbone,
    fit_basis,
    load_image_backbone,
)
from training.pretrained.weights import weights_file


def test_reduced_samples_are_centred_uncorrelated_and_half_whitened() -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([9.0, 5, 3, 1, 0.5, 0.1])
    features_MF = torch.randn(50, 6, generator=generator) * spread + 7.0
    reduced_MK = fit_basis(features_MF, 3).reduce(features_MF)
    assert reduced_MK.mean(0).abs().max() < 1e-4
    # Each component is divided by the root of its spread, so its square sum is that spread.
    expected = torch.linalg.svdvals(features_MF - features_MF.mean(0))[:3]
    torch.testing.assert_close(reduced_MK.T @ reduced_MK, expected.diag(), rtol=1e-3, atol=1e-3)
    for few in (features_MF[:2], features_MF[:, :2]):
        with pytest.raises(ValueError, match="3 axes need"):
            fit_basis(few, 3)


@pytest.fixture(scope="module")
def backbone() -> FrozenImageBackbone:
    """The real network."""
    return FrozenImageBackbone()


def test_there_is_a_cell_for_each_patch_in_row_major_order(backbone: FrozenImageBackbone) -> None:
    pixels_B3HW = torch.full((1, 3, 56, 84), 0.5)
    flat_BNF = backbone.encode_patches(pixels_B3HW)
    assert flat_BNF.shape == (1, 4 * 6, 1280)
    corners = {0: (0, 0), 5: (0, 70), 18: (42, 0), 23: (42, 70)}
    for corner, (top, left) in corners.items():
        marked = pixels_B3HW.clone()
        marked[..., top : top + 14, left : left + 14] = 0.0
        change_N = (backbone.encode_patches(marked) - flat_BNF).norm(dim=-1)[0]
        # A cell sees beyond its patch, so neighbours change as well; other corners least.
        assert max(corners, key=lambda index: float(change_N[index])) == corner


def test_openvino_gives_the_features_of_torch_also_under_autocast(
    backbone: FrozenImageBackbone,
) -> None:
    coarse = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    pixels_B3HW = F.interpolate(coarse, (56, 56), mode="bicubic").clamp(0, 1)
    large = F.interpolate(pixels_B3HW, (128, 128), mode="bilinear")
    expected_BNF = backbone._cells(large).flatten(2).transpose(1, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found_BNF = backbone.encode_patches(pixels_B3HW)
    assert found_BNF.dtype == torch.float32
    # In bfloat16 where the CPU has it.
    assert F.cosine_similarity(found_BNF, expected_BNF, dim=-1).min() > 0.98


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


def test_other_weights_and_a_missing_package_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = {"numpy": ("__init__.py", "0" * 64), "no_such_package": ("a", "0" * 64)}
    monkeypatch.setattr(weights, "FILES", changed)
    with pytest.raises(ValueError, match="reinstall numpy"):
        weights_file("numpy")
    with pytest.raises(FileNotFoundError, match="no_such_package is missing"):
        weights_file("no_such_package")
