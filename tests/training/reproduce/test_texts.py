"""Texts as fixed vectors, and batches of cells."""

import torch

from training.data.captions import SCENE_CAPTIONS
from training.reproduce.runner import Setup
from training.reproduce.texts import CellBatches


def test_batch_i_is_always_the_same_and_captions_belong_to_their_scenes(toy: Setup) -> None:
    batches = CellBatches(
        scenes=toy.sets["train"],
        texts=toy.texts,
        captions=SCENE_CAPTIONS,
        batch_size=4,
        num_steps=3,
        seed=5,
    )
    first, second, third = batches.loader(0, num_workers=0)
    (again,) = batches.loader(2, num_workers=0)
    assert torch.equal(third.pixels_B3HW, again.pixels_B3HW)
    assert not torch.equal(first.pixels_B3HW, second.pixels_B3HW)
    train = toy.sets["train"]
    for cells, row in zip(third.pixels_B3HW, third.cls1_ids_T.tolist(), strict=True):
        (number,) = [n for n, known in enumerate(train.cells_SKhw) if (known == cells).all()]
        assert toy.texts.rows[train.captions[number].short] == row
