"""Toy scenes that need neither network nor drawings."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from model.text import TEMPLATES
from training.evaluate.zero_shot_segmentation import class_ids
from training.heads import HeadConfig
from training.optim import OptimConfig
from training.reproduce.plan import Scale
from training.reproduce.runner import Setup
from training.reproduce.scenes import NAMES, CellConfig, CellScenes, TextTable

SCALE = Scale(
    cells=CellConfig(grid=4, width=8, num_train=8, num_test=3),
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


def toy_scenes(count: int, seed: int) -> CellScenes:
    """Scenes of two names, left and right; a cell's first channels say which name it shows."""
    rng = np.random.default_rng(seed)
    grid, side = SCALE.cells.grid, 14 * SCALE.cells.grid
    cells = rng.normal(0, 0.1, (count, SCALE.cells.width, grid, grid)).astype(np.float16)
    mask = np.zeros((count, side, side), np.int16)
    short = []
    for number in range(count):
        left, right = (int(k) for k in rng.choice(4, 2, replace=False))
        cells[number, left, :, : grid // 2] += 3
        cells[number, right, :, grid // 2 :] += 3
        ids = class_ids([NAMES[left], NAMES[right]]).tolist()
        mask[number, :, : side // 2], mask[number, :, side // 2 :] = ids
        short.append(f"{NAMES[left]} and {NAMES[right]}")
    keywords = tuple(text.replace(" and", ",") for text in short)
    return CellScenes(
        cells_SKhw=cells, mask_SHW=mask, short=tuple(short), keywords=keywords, scene=("s",) * count
    )


@pytest.fixture
def toy(tmp_path: Path) -> Setup:
    """Toy scenes, and a random vector for each text."""
    sets = {"train": toy_scenes(8, 0), "seen": toy_scenes(3, 1), "unseen": toy_scenes(3, 2)}
    prompts = [prompt.format(name) for name in NAMES for prompt in TEMPLATES["tcl"]]
    captions = [t for s in sets.values() for t in (*s.short, *s.keywords, *s.scene)]
    texts = list(dict.fromkeys((*prompts, *captions)))
    vectors = torch.randn(len(texts), SCALE.width, generator=torch.Generator().manual_seed(0))
    rows = {text: row for row, text in enumerate(texts)}
    table = TextTable(rows=rows, vectors_CD=F.normalize(vectors, dim=-1))
    return Setup(scale=SCALE, sets=sets, texts=table, runs=tmp_path / "runs")
