"""The frozen image backbone: features for each patch, equal in OpenVINO and torch."""

import pytest
import torch
from torch.nn import functional as F

from training.pretrained import weights
from training.pretrained.image_backbone import FrozenImageBackbone
from training.pretrained.weights import weights_file


@pytest.fixture(scope="module")
def backbone() -> FrozenImageBackbone:
    """The real network."""
    return FrozenImageBackbone()


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


def test_other_weights_and_a_missing_package_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = {"numpy": ("__init__.py", "0" * 64), "no_such_package": ("a", "0" * 64)}
    monkeypatch.setattr(weights, "FILES", changed)
    with pytest.raises(ValueError, match="reinstall numpy"):
        weights_file("numpy")
    with pytest.raises(FileNotFoundError, match="no_such_package is missing"):
        weights_file("no_such_package")
