"""Trains the arms that have no result yet, one after another, and writes one JSON file for each.

A stopped arm resumes from its checkpoint. Masks are used only to measure.

Shapes: S scenes, K channels of a cell or candidate names, N patches, D width, H W pixels.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Tipsv2Model

from model.features import vision_tokens
from model.files import atomic_write
from training.checkpoint import save_atomically, split_model
from training.config import TrainingConfig
from training.evaluate.zero_shot_segmentation import (
    SceneCounts,
    count_scenes,
    largest_object,
    painted_cosines,
    patch_cosines,
)
from training.methods.base import Method
from training.methods.distill import Distill, DistillConfig
from training.methods.pretrain import Pretrain, PretrainConfig
from training.methods.teacher import HEAD_FILE, MODEL_FOLDER, load_teacher
from training.reproduce.plan import Arm, Scale, planned
from training.reproduce.scenes import NAMES, CellBatches, CellScenes, FixedTexts, TextTable
from training.start import load_heads, load_start
from training.trainer import Trainer

PATCHES, PAINTED, LARGEST = "patches", "painted CLS1", "largest object"
_BATCH = 50


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Setup:
    """What all arms share: the scenes "train", "seen" and "unseen", their texts, and the runs."""

    scale: Scale
    sets: Mapping[str, CellScenes]
    texts: TextTable
    runs: Path


def build_method(setup: Setup, config: TrainingConfig) -> Method:
    """An arm's method, from its start and its teacher."""
    torch.manual_seed(config.seed)
    model = Tipsv2Model(setup.scale.model())
    model.set_attn_implementation("eager")
    if config.start is not None:
        load_start(model, config.start)
    model.text_model = FixedTexts(setup.texts.vectors_CD)
    if isinstance(config.method, DistillConfig):
        assert config.teacher is not None  # TrainingConfig checks it
        return Distill(model, config.method, load_teacher(config.teacher, setup.scale.head))
    assert isinstance(config.method, PretrainConfig)
    method = Pretrain(model, config.method)
    if config.start is not None:
        load_heads(method, config.start)
    return method


def train_arm(setup: Setup, arm: Arm) -> Method:
    """Train an arm, or resume it, and save what later arms start from."""
    config = arm.config
    method = build_method(setup, config)
    # Branches do not see again the order of their start, and students have a seed of their own.
    is_branch = config.start is not None and config.teacher is None
    batches = CellBatches(
        scenes=setup.sets["train"],
        texts=setup.texts,
        captions=arm.captions,
        batch_size=config.batch_size,
        num_steps=config.num_steps,
        seed=2 * config.seed + is_branch,
    )
    Trainer(config, method, batches).train()
    plain = Tipsv2Model(setup.scale.model())
    plain.vision_model.load_state_dict(method.model.vision_model.state_dict())
    plain.temperature.data.copy_(method.model.temperature)
    plain.save_pretrained(config.folder / MODEL_FOLDER)
    save_atomically(split_model(method.state_dict())[1], config.folder / HEAD_FILE)
    return method.eval()


@torch.inference_mode()
def encode(model: Tipsv2Model, scenes: CellScenes) -> dict[str, NDArray[np.float32]]:
    """Features of scenes: patches [S, N, D] and, to be painted, CLS1 [S, D]."""
    cells = torch.from_numpy(scenes.cells_SKhw).split(_BATCH)
    found = [vision_tokens(model, part.float()) for part in cells]
    return {
        PATCHES: torch.cat([tokens.patches_BND for tokens in found]).numpy(),
        PAINTED: torch.cat([tokens.cls1_BD for tokens in found]).numpy(),
    }


def segment(
    features: Mapping[str, NDArray[np.float32]], scenes: CellScenes, classes_KD: NDArray[np.float32]
) -> dict[str, dict[str, float]]:
    """MIoU and "which" of patches, of painted CLS1, and of painting the largest object."""
    masks = scenes.mask_SHW
    cosines = {
        PATCHES: patch_cosines(features[PATCHES], classes_KD),
        PAINTED: painted_cosines(features[PAINTED], classes_KD),
        LARGEST: largest_object(masks, NAMES),
    }
    counts = {name: count_scenes(masks, NAMES, maps) for name, maps in cosines.items()}
    measures = {"mIoU": SceneCounts.miou, "which": SceneCounts.which}
    return {
        name: {title: round(one.overall(measure), 3) for title, measure in measures.items()}
        for name, one in counts.items()
    }


def result_path(results: Path, config: TrainingConfig) -> Path:
    """File of one arm and seed."""
    return results / config.runs.name / f"{config.name}.json"


def run_all(
    setup: Setup,
    seeds: Sequence[int],
    *,
    results: Path,
    after_each: Callable[[dict[str, Any]], None],
) -> None:
    """Train and measure the arms without a result."""
    for arm in planned(setup.scale, seeds, setup.runs):
        path = result_path(results, arm.config)
        if not path.exists():
            result = _run(setup, arm)
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, json.dumps(result, indent=1) + "\n")
            after_each(result)


def _run(setup: Setup, arm: Arm) -> dict[str, Any]:
    config, began_s = arm.config, time.process_time()
    method = train_arm(setup, arm)
    classes_KD, scores = setup.texts.classes().numpy(), {}
    for name in ("seen", "unseen"):
        found = encode(method.model, setup.sets[name])
        scores[name] = segment(found, setup.sets[name], classes_KD)
    return {
        "arm": config.name,
        "seed": config.runs.name,
        "samples": config.num_steps * config.batch_size,
        "cpu_s": round(time.process_time() - began_s),
        "scores": scores,
    }


def summary(results: Path, scale: Scale) -> str:
    """A Markdown table: mean mIoU of each arm over its seeds, patches and painted CLS1."""
    lines = ["| arm | patches | painted CLS1 | patches, unseen style | seeds |"]
    lines.append("| --- | ---: | ---: | ---: | ---: |")
    for arm in planned(scale, [0], results):
        name = arm.config.name
        found = [
            json.loads(path.read_text(encoding="utf-8"))["scores"]
            for path in sorted(results.glob(f"seed-*/{name}.json"))
        ]
        if found:
            columns = (("seen", PATCHES), ("seen", PAINTED), ("unseen", PATCHES))
            means = [
                f"{sum(one[scenes][row]['mIoU'] for one in found) / len(found):.1f}"
                for scenes, row in columns
            ]
            lines.append(f"| {name} | {' | '.join(means)} | {len(found)} |")
    return "\n".join(lines)
