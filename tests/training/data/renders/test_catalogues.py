"""Models have the catalogue's size, stand on the ground, and keep colours and textures."""

from pathlib import Path

import numpy as np
import pytest

from training.data.renders import catalogues
from training.data.renders.catalogues import Furniture, catalogue_files, read_catalogue
from training.data.renders.store import load_furniture


def test_models_are_turned_and_sized_as_the_catalogue_says(boxes: list[Furniture]) -> None:
    standing, lying = boxes
    assert (standing.name, standing.creator, standing.catalogue) == ("Red box", "A. Maker", "Test")
    # Front and back of the standing box are top and bottom of the lying one.
    for box, size, axis in ((standing, (0.5, 0.8, 0.3), 2), (lying, (0.5, 0.3, 0.8), 1)):
        np.testing.assert_allclose(box.size, size, rtol=1e-5)
        low, high = (f(box.corners_T33.reshape(-1, 3), axis=0) for f in (np.min, np.max))
        assert low[1] == 0
        np.testing.assert_allclose(low[[0, 2]], -high[[0, 2]], atol=1e-6)
        printed = next(i for i, texture in enumerate(box.textures) if texture is not None)
        sides = box.corners_T33[box.material_T == printed]
        assert np.ptp(sides[..., axis], axis=1).max() < 1e-6


def test_each_triangle_has_its_material(boxes: list[Furniture]) -> None:
    box = boxes[0]
    assert len(box.corners_T33) == len(box.texture_T32) == len(box.material_T) == 12
    plain, printed = (0, 1) if box.textures[0] is None else (1, 0)
    assert (box.material_T == plain).sum() == 8
    np.testing.assert_allclose(box.colours_M3[plain], (1, 0, 0))
    texture = box.textures[printed]
    assert texture is not None
    assert texture.shape[1] == catalogues.TEXTURE_SIDE
    assert texture[0, 0].tolist() == [0, 0, 255]
    corners = box.texture_T32[box.material_T == printed].reshape(-1, 2)
    assert {tuple(corner) for corner in corners.tolist()} == {(0, 0), (1, 0), (1, 1), (0, 1)}


def test_very_large_models_are_left_out(catalogue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogues, "MAX_MODEL_BYTES", 100)
    assert not list(read_catalogue(catalogue))


def test_catalogues_are_chosen_by_name(catalogue: Path, tmp_path: Path) -> None:
    assert catalogue_files(catalogue.parent) == {"Test": catalogue}
    assert len(load_furniture(catalogue.parent)) == len(load_furniture(catalogue.parent, ["Test"]))
    with pytest.raises(FileNotFoundError, match="lacks the catalogue Scopia"):
        load_furniture(catalogue.parent, ["Scopia"])
    with pytest.raises(FileNotFoundError, match="sweethome3d-furniture"):
        catalogue_files(tmp_path)
