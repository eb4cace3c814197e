"""Reduced features: centred, uncorrelated, half whitened; and new ones by the same axes."""

import pytest
import torch

from training.pretrained.image_backbone import fit_basis


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


def test_reduction_is_affine_so_a_mean_of_cells_is_the_cell_of_the_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    basis = fit_basis(torch.randn(40, 8, generator=generator), 4)
    cells_BNF = torch.randn(2, 5, 8, generator=generator)
    torch.testing.assert_close(basis.reduce(cells_BNF).mean(1), basis.reduce(cells_BNF.mean(1)))


@pytest.mark.parametrize(("samples", "features"), [(3, 8), (8, 3)])
def test_more_axes_than_samples_or_features_are_refused(samples: int, features: int) -> None:
    with pytest.raises(ValueError, match="4 axes need"):
        fit_basis(torch.randn(samples, features), 4)
