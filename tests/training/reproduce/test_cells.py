"""Scenes as cells of the frozen network."""

from pathlib import Path

import numpy as np
import pytest
import torch

from training.data.folder import EMOJI_TRAIN_STYLES, DataFolder
from training.data.scenes import compose_scene
from training.pretrained.image_backbone import FrozenImageBackbone
from training.reproduce.cells import NAMES, CellConfig, cached_cells

CONFIG = CellConfig(grid=4, width=8, num_train=9, num_val=2, num_test=2)


def test_a_cell_is_the_networks_at_its_patch(data_folder: DataFolder, tmp_path: Path) -> None:
    sets = cached_cells(data_folder, CONFIG, tmp_path)
    assert {name: len(found) for name, found in sets.items()} == {
        "train": 9,
        "val": 2,
        "seen": 2,
        "unseen": 2,
    }
    source = data_folder.source("train", styles=EMOJI_TRAIN_STYLES, names=frozenset(NAMES))
    scene = compose_scene(source, 8, CONFIG.scenes)
    assert sets["train"].captions[8] == scene.captions
    assert np.array_equal(sets["train"].mask_SHW[8], scene.mask_SS)
    pixels = torch.from_numpy(scene.pixels_SS3).permute(2, 0, 1)[None].float() / 255
    cells = FrozenImageBackbone().encode_patches(pixels)[0]
    basis = torch.load(tmp_path / "basis.pt", weights_only=True)
    reduced = (cells - basis["mean_F"]) @ basis["axes_FK"]
    found = sets["train"].cells_SKhw[8].reshape(8, 16).T
    assert np.allclose(found, reduced.numpy(), atol=2e-2)


def test_cells_are_computed_once(
    data_folder: DataFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cached_cells(data_folder, CONFIG, tmp_path)
    monkeypatch.setattr(FrozenImageBackbone, "__init__", lambda _: pytest.fail("computed again"))
    again = cached_cells(data_folder, CONFIG, tmp_path)
    for name, cells in first.items():
        assert np.array_equal(cells.cells_SKhw, again[name].cells_SKhw)
        assert cells.captions == again[name].captions


def test_scenes_show_two_or_three_objects_on_textures(data_folder: DataFolder) -> None:
    source = data_folder.source("train", styles=EMOJI_TRAIN_STYLES, names=frozenset(NAMES))
    scenes = [compose_scene(source, index, CellConfig().scenes) for index in range(20)]
    assert {len(scene.captions.names) for scene in scenes} == {2, 3}
    assert not any("plain" in s.captions.scene or "fading" in s.captions.scene for s in scenes)
    assert np.mean([(scene.mask_SS > 0).mean() for scene in scenes]) > 0.4
