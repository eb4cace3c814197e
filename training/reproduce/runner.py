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
from transformers import Tipsv2Model, Tipsv2VisionModel

from model.features import vision_features
from model.files import atomic_file
from training.checkpoint import save_atomically, split_model
from training.data.scenes import Scene
from training.evaluate.zero_shot_segmentation import (
    Scorer,
    count_scenes,
    largest_object_scorer,
    painted_scorer,
    patch_scorer,
)
from training.methods.base import Method
from training.methods.distill import Distill, DistillConfig
from training.methods.pretrain import Pretrain
from training.methods.teacher import HEAD_FILE, MODEL_FOLDER, load_teacher
from training.reproduce.cells import NAMES, CellScenes
from training.reproduce.plan import (
    Arm,
    Scale,
    file_name,
    fingerprint,
    planned,
    training_config,
)
from training.reproduce.texts import CellBatches, FixedTexts, TextTable
from training.start import load_heads, load_start
from training.trainer import Trainer

PATCHES, VALUES, PAINTED, LARGEST, CHANCE = (
    "patches",
    "values",
    "painted CLS1",
    "largest object",
    "chance",
)
_BATCH = 50
_EDGE_ROWS = 3  # log rows that are averaged at the start and at the end of an arm
_LOGGED = ("cls1", "cls2", "patch_visible", "patch_masked", "patch", "ibot")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Setup:
    """What all arms share.

    Attributes:
        scale: Sizes.
        sets: Scenes: "train", "val", and the test sets "seen" and "unseen".
        texts: Their captions and the names.
        runs: Parent of the seeds' folders.
    """

    scale: Scale
    sets: Mapping[str, CellScenes]
    texts: TextTable
    runs: Path


def build_method(setup: Setup, arm: Arm, seed: int) -> Method:
    """The arm's method, from its start and its teacher."""
    scale = setup.scale
    config = training_config(scale, arm, seed, setup.runs)
    torch.manual_seed(config.seed)
    model = Tipsv2Model(scale.model())
    model.set_attn_implementation("eager")
    if config.start is not None:
        load_start(model, config.start)
    model.text_model = FixedTexts(setup.texts.vectors_CD)
    if isinstance(arm.method, DistillConfig):
        assert config.teacher is not None  # TrainingConfig checks it
        teacher = load_teacher(config.teacher, scale.head)
        return Distill(model, arm.method, teacher)
    method = Pretrain(model, arm.method)
    if config.start is not None:
        load_heads(method, config.start)
    return method


def train_arm(setup: Setup, arm: Arm, seed: int) -> Method:
    """Train an arm, or resume it, and save what later arms start from."""
    scale = setup.scale
    config = training_config(scale, arm, seed, setup.runs)
    method = build_method(setup, arm, seed)
    # Later arms of a seed do not see again the order of its start.
    part = 2 if arm.teacher else 1 if arm.start else 0
    batches = CellBatches(
        scenes=setup.sets["train"],
        texts=setup.texts,
        captions=arm.captions,
        batch_size=scale.batch_size,
        num_steps=arm.num_steps,
        seed=3 * seed + part,
    )
    Trainer(config, method, batches).train()
    plain = Tipsv2Model(scale.model())
    plain.vision_model.load_state_dict(method.model.vision_model.state_dict())
    plain.temperature.data.copy_(method.model.temperature)
    plain.save_pretrained(config.folder / MODEL_FOLDER)
    save_atomically(split_model(method.state_dict())[1], config.folder / HEAD_FILE)
    return method.eval()


@torch.inference_mode()
def encode(
    model: Tipsv2Model | Tipsv2VisionModel, scenes: CellScenes
) -> dict[str, NDArray[np.float32]]:
    """Features of scenes: "patches" and "values" [S, N, D], "cls1" [S, D]."""
    parts = []
    for first in range(0, len(scenes), _BATCH):
        cells_BKhw = torch.from_numpy(scenes.cells_SKhw[first : first + _BATCH]).float()
        found = vision_features(model, cells_BKhw)
        parts.append((found.patches_BND, found.values_BND, found.cls1_BD))
    joined = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
    return dict(zip((PATCHES, VALUES, "cls1"), joined, strict=True))


def segment(
    features: Mapping[str, NDArray[np.float32]],
    scenes: CellScenes,
    classes_KD: NDArray[np.float32],
) -> dict[str, dict[str, float]]:
    """MIoU and "which" of each kind of patches, of painted CLS1, and of two that need no model."""
    shown = [
        Scene(
            pixels_SS3=np.zeros((0, 0, 3), np.uint8),
            mask_SS=mask.astype(np.int32),
            captions=captions,
            drawings=(),
        )
        for mask, captions in zip(scenes.mask_SHW, scenes.captions, strict=True)
    ]
    row = {id(scene): number for number, scene in enumerate(shown)}

    def feature(kind: str) -> Callable[[Scene], NDArray[np.float32]]:
        return lambda scene: np.asarray(features[kind][row[id(scene)]])

    scorers: dict[str, Scorer] = {
        PATCHES: patch_scorer(feature(PATCHES), classes_KD),
        VALUES: patch_scorer(feature(VALUES), classes_KD),
        PAINTED: painted_scorer(feature("cls1"), classes_KD),
        LARGEST: largest_object_scorer(NAMES),
    }
    counts = {name: count_scenes(shown, NAMES, scorer) for name, scorer in scorers.items()}
    counts[CHANCE] = counts[LARGEST].guessed()
    return {
        name: {"mIoU": round(c.miou(), 3), "which": round(c.which(), 3)}
        for name, c in counts.items()
    }


def _edges(folder: Path) -> dict[str, list[float]]:
    """First and last values of each logged loss."""
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    found = {}
    for name in _LOGGED:
        values = [row[name] for row in rows if name in row]
        if values:
            edges = values[:_EDGE_ROWS], values[-_EDGE_ROWS:]
            found[name] = [round(sum(edge) / len(edge), 4) for edge in edges]
    return found


def result_path(results: Path, seed: int, arm: str) -> Path:
    """File of one arm and seed."""
    return results / f"seed-{seed}" / f"{file_name(arm)}.json"


def run_all(
    setup: Setup,
    seeds: Sequence[int],
    *,
    results: Path,
    after_each: Callable[[dict[str, Any]], None],
) -> None:
    """Train and measure the arms without a result.

    Raises:
        ValueError: A result was made with other settings.
    """
    settings = fingerprint(setup.scale)
    for seed, arm in planned(setup.scale, seeds):
        path = result_path(results, seed, arm.name)
        if not path.exists():
            result = {"arm": arm.name, "seed": seed, "settings": settings, **_run(setup, arm, seed)}
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as temporary:
                temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            after_each(result)
        elif json.loads(path.read_text(encoding="utf-8"))["settings"] != settings:
            raise ValueError(f"{path} was made with other settings; choose another --results")


def _run(setup: Setup, arm: Arm, seed: int) -> dict[str, Any]:
    began_s = time.process_time()
    method = train_arm(setup, arm, seed)
    classes_KD, scores = setup.texts.classes().numpy(), {}
    for name in ("seen", "unseen"):
        found = encode(method.model, setup.sets[name])
        scores[name] = segment(found, setup.sets[name], classes_KD)
    folder = training_config(setup.scale, arm, seed, setup.runs).folder
    return {
        "samples": arm.num_steps * setup.scale.batch_size,
        "cpu_s": round(time.process_time() - began_s),
        "losses": _edges(folder),
        "scores": scores,
    }


def summary(results: Path, scale: Scale) -> str:
    """A Markdown table: mean mIoU of each arm over its seeds, patches and painted CLS1."""
    lines = ["| arm | patches | painted CLS1 | patches, unseen style | seeds |"]
    lines.append("| --- | ---: | ---: | ---: | ---: |")
    for _, arm in planned(scale, [0]):
        found = [
            json.loads(path.read_text(encoding="utf-8"))["scores"]
            for path in sorted(results.glob(f"seed-*/{file_name(arm.name)}.json"))
        ]
        if found:
            columns = (("seen", PATCHES), ("seen", PAINTED), ("unseen", PATCHES))
            means = [
                f"{sum(one[scenes][row]['mIoU'] for one in found) / len(found):.1f}"
                for scenes, row in columns
            ]
            lines.append(f"| {arm.name} | {' | '.join(means)} | {len(found)} |")
    return "\n".join(lines)
