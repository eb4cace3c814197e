"""Results made of numbers, and toy scenes that need neither network nor drawings."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from model.text import TEMPLATES
from training.data.captions import Captions
from training.evaluate.zero_shot_segmentation import class_ids
from training.reproduce.cells import NAMES, CellScenes
from training.reproduce.plan import Scale, fingerprint, smoke
from training.reproduce.runner import PAINTED, Setup, result_path
from training.reproduce.texts import TextTable

SCALE = smoke()
Finish = Callable[..., None]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """An empty folder of results."""
    return tmp_path / "results"


@pytest.fixture
def finish(results: Path) -> Finish:
    """Write the result of an arm and seed."""

    def write(
        arm: str,
        seed: int,
        *,
        patches: float,
        painted: float = 35.0,
        visible: float = 3.0,
        settings: str = fingerprint(SCALE),
        origin: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        rows = {"patches": patches, "values": patches, PAINTED: painted}
        rows |= {"largest object": 40.0, "chance": 3.2}
        scores = {row: {"mIoU": value, "which": value + 20} for row, value in rows.items()}
        result = {
            "arm": arm,
            "seed": seed,
            "settings": settings,
            **origin,
            "samples": 64,
            "cpu_s": 1,
            "losses": {"cls1": [4.0, 1.0], "patch_visible": [5.0, visible]},
            "scores": {"seen": scores, "unseen": scores},
            "naming": 85.0,
            "patches": 25.0,
            "information": None,
        }
        path = result_path(results, seed, arm)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result), encoding="utf-8")

    return write


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
