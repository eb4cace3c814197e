"""Scenes as cells of the frozen network."""

from pathlib import Path

import numpy as np
import pytest
import torch

from training.data.folder import EMOJI_TRAIN_STYLES, DataFolder
from training.data.scenes import compose_scene
from training.pretrained.image_backbone import FrozenImageBackbone, fit_basis
from training.reproduce import cells as cells_module
from training.reproduce.cells import NAMES, CellConfig, cached_cells

CONFIG = CellConfig(grid=4, width=8, num_train=9, num_test=2)


def test_cells_are_the_networks_at_their_patches_and_computed_once(
    data_folder: DataFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells_module, "_BASIS_SCENES", 9)
    sets = cached_cells(data_folder, CONFIG, tmp_path)
    assert {name: len(found.captions) for name, found in sets.items()} == {
        "train": 9,
        "seen": 2,
        "unseen": 2,
    }
    source = data_folder.source("train", styles=EMOJI_TRAIN_STYLES, names=frozenset(NAMES))
    scenes = [compose_scene(source, number, CONFIG.scenes) for number in range(9)]
    train = sets["train"]
    assert list(train.captions) == [scene.captions for scene in scenes]
    assert np.array_equal(train.mask_SHW[8], scenes[8].mask_SS)
    pixels = torch.stack([torch.from_numpy(scene.pixels_SS3) for scene in scenes])
    cells_SNF = FrozenImageBackbone().encode_patches(pixels.permute(0, 3, 1, 2).float() / 255)
    basis = fit_basis(cells_SNF.flatten(0, 1), 8)
    reduced_SKN = basis.reduce(cells_SNF).mT
    torch.testing.assert_close(
        train.cells_SKhw.flatten(2).float(), reduced_SKN, rtol=1e-2, atol=2e-2
    )
    monkeypatch.setattr(FrozenImageBackbone, "__init__", lambda _: pytest.fail("computed again"))
    again = cached_cells(data_folder, CONFIG, tmp_path)
    assert all(torch.equal(again[name].cells_SKhw, sets[name].cells_SKhw) for name in sets)
