"""Toy scenes that need neither network nor drawings."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from model.text import TEMPLATES
from training.data.captions import Captions
from training.evaluate.zero_shot_segmentation import class_ids
from training.heads import HeadConfig
from training.optim import OptimConfig
from training.reproduce.cells import NAMES, CellConfig, CellScenes
from training.reproduce.plan import Scale
from training.reproduce.runner import Setup
from training.reproduce.texts import TextTable

SCALE = Scale(
    cells=CellConfig(grid=4, width=8, num_train=8, num_val=3, num_test=3),
    width=16,
    layers=2,
    heads=2,
    head=HeadConfig(layers=2, hidden=16, bottleneck=8, num_prototypes=12),
    batch_size=4,
    start_steps=2,
    pretrain_steps=4,
    distill_steps=2,
    optim=OptimConfig(optimizer="adamw", warmup_steps=1),
    branch_optim=OptimConfig(optimizer="adamw", warmup_steps=1),
)


def toy_scenes(count: int, seed: int, scale: Scale = SCALE) -> CellScenes:
    """Scenes of two names, left and right; a cell's first channels say which name it shows."""
    rng = np.random.default_rng(seed)
    grid, side = scale.cells.grid, 14 * scale.cells.grid
    cells = rng.normal(0, 0.1, (count, scale.cells.width, grid, grid)).astype(np.float16)
    mask = np.zeros((count, side, side), np.int16)
    captions = []
    for number in range(count):
        left, right = (int(k) for k in rng.choice(4, 2, replace=False))
        cells[number, left, :, : grid // 2] += 3
        cells[number, right, :, grid // 2 :] += 3
        mask[number, :, : side // 2], mask[number, :, side // 2 :] = class_ids(NAMES)[[left, right]]
        names = NAMES[left], NAMES[right]
        captions.append(
            Captions(names=names, short=" and ".join(names), keywords=", ".join(names), scene="s")
        )
    return CellScenes(cells_SKhw=cells, mask_SHW=mask, captions=tuple(captions))


@pytest.fixture
def toy(tmp_path: Path) -> Setup:
    """Toy scenes, and a random vector for each text."""
    cells = SCALE.cells
    counts = {"train": cells.num_train, "val": cells.num_val, "seen": 3, "unseen": 3}
    sets = {name: toy_scenes(count, n) for n, (name, count) in enumerate(counts.items())}
    prompts = [prompt.format(name) for name in NAMES for prompt in TEMPLATES["tcl"]]
    captions = [text for s in sets.values() for c in s.captions for text in c.by_source().values()]
    texts = list(dict.fromkeys((*prompts, *captions)))
    vectors = torch.randn(len(texts), SCALE.width, generator=torch.Generator().manual_seed(0))
    rows = {text: row for row, text in enumerate(texts)}
    table = TextTable(rows=rows, vectors_CD=F.normalize(vectors, dim=-1))
    return Setup(scale=SCALE, sets=sets, texts=table, runs=tmp_path / "runs")
