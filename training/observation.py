"""What a run reports while it trains: log, step times, validation scores, drawn scenes.

`log.jsonl` holds the loss curve, one JSON object a line, with no step twice: a killed process may
have logged steps after its last checkpoint, and the resumed run repeats them, so their lines are
removed first. The boards show the scalars and a few fixed scenes, a row of four images each: the
image, its patches in three colours (their first principal components), the predicted mask among all
candidate names, and the true mask. Only rank 0 scores and writes; the other ranks take part where a
sharded model must be gathered.

Shapes: B scenes, N patches in row-major order, D width, S side in pixels, h w patch grid.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Tipsv2Tokenizer

from model.encoder import Encoder, Tipsv2Encoder
from model.segmentation import segment
from training.boards import Boards
from training.checkpoint import save_atomically, split_model
from training.data.scenes import Scene
from training.evaluate.encoder import SceneEncoder, load_for_evaluation
from training.evaluate.ranking import ClassificationBenchmark
from training.evaluate.sets import SegmentationBenchmark
from training.evaluate.zero_shot_segmentation import class_ids
from training.methods.teacher import HEAD_FILE, MODEL_FOLDER
from training.parallel import ParallelMethod

Row = dict[str, float]
LOG_FILE = "log.jsonl"
_NUM_SHOWN = 4
_GOLDEN = 0.618034


class Log:
    """The log of one run, on rank 0."""

    def __init__(self, run: Path) -> None:
        self._path = run / LOG_FILE

    def drop_after(self, step: int) -> None:
        """Remove rows after a step, and a line that a kill cut off."""
        if not self._path.exists():
            return
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        if kept != lines:
            temporary = self._path.with_suffix(".tmp")
            temporary.write_text("".join(kept), encoding="utf-8")
            temporary.replace(self._path)

    def append(self, row: Row) -> None:
        """Add a row with the current time."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**row, "time_s": round(time.time(), 1)}) + "\n")


def read_log(run: Path) -> list[Row]:
    """All rows of a run's log, in order; empty if there is no log yet."""
    path = run / LOG_FILE
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class StepTimer:
    """Mean time per step since the last report; each step calls `waiting` once."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Start a new measurement now."""
        self._began_s, self._waited_s, self._steps = time.perf_counter(), 0.0, 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside the block as waiting for one step's data."""
        before_s = time.perf_counter()
        yield
        self._waited_s += time.perf_counter() - before_s
        self._steps += 1

    def per_step(self) -> dict[str, float]:
        """Mean seconds per step ("step_s") and of waiting ("wait_s"); starts a new measurement."""
        steps, waited_s = max(1, self._steps), self._waited_s
        total_s = time.perf_counter() - self._began_s
        self.restart()
        return {"step_s": round(total_s / steps, 4), "wait_s": round(waited_s / steps, 4)}


def pca_colours(patches_BND: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Colours [B, N, 3] of patches: their first three principal components over all images.

    The sign of a component is arbitrary; it is chosen so that the distribution is skewed to the
    right, which keeps colours from flipping between two validations.
    """
    flat = patches_BND.reshape(-1, patches_BND.shape[-1]).astype(np.float64)
    flat = flat - flat.mean(0)
    axes_3D = np.linalg.svd(flat, full_matrices=False)[2][:3]
    parts = flat @ axes_3D.T
    parts = parts * np.where((parts**3).sum(0) < 0, -1.0, 1.0)
    low, high = np.percentile(parts, [2, 98], axis=0)
    unit = np.clip((parts - low) / np.maximum(high - low, 1e-9), 0, 1)
    colours = np.zeros((len(flat), 3), np.uint8)
    colours[:, : parts.shape[1]] = np.round(255 * unit)
    return colours.reshape(*patches_BND.shape[:2], 3)


def label_colours(labels_SS: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Colours [S, S, 3] of labels: 0 is black, every other label has its own hue."""
    hue = (labels_SS.astype(np.float64) * _GOLDEN) % 1.0
    channels = [np.clip(np.abs((hue * 6 + shift) % 6 - 3) - 1, 0, 1) for shift in (0, 4, 2)]
    bright = np.stack(channels, axis=-1) * 0.8 + 0.2
    return np.where(labels_SS[..., None] > 0, np.round(255 * bright), 0).astype(np.uint8)


def scene_panel(
    encoder: Encoder,
    scenes: Sequence[Scene],
    names: Sequence[str],
) -> NDArray[np.uint8]:
    """Draw scenes of one size in rows: uint8 [B * S, 4 * S, 3].

    Args:
        encoder: In evaluation mode, on the CPU.
        scenes: At least one.
        names: Candidates of the predicted mask; must include all objects of the scenes.
    """
    encoded = SceneEncoder(encoder, scenes)
    classes_KD, ids_K = encoded.classes(names, "none"), class_ids(names)
    side = len(scenes[0].mask_SS)
    patches_BND = np.stack([encoded.feature("patches", scene) for scene in scenes])
    grid = round(patches_BND.shape[1] ** 0.5)
    rows = []
    for scene, patches_ND, colours_N3 in zip(
        scenes, patches_BND, pca_colours(patches_BND), strict=True
    ):
        found = segment(
            patches_ND, classes_KD, grid_hw=(grid, grid), size_hw=(side, side)
        ).labels_HW
        colours = colours_N3.reshape(grid, grid, 3)
        zoomed = colours.repeat(side // grid, axis=0).repeat(side // grid, axis=1)
        predicted, true = label_colours(ids_K[found - 1]), label_colours(scene.mask_SS)
        rows.append(np.concatenate([scene.pixels_SS3, zoomed, predicted, true], axis=1))
    return np.concatenate(rows)


def save_model(folder: Path, method: ParallelMethod, tokenizer: Tipsv2Tokenizer) -> None:
    """Save the model in transformers' format, its tokenizer, and the heads that students need.

    Called on every rank; rank 0 writes.
    """
    state = method.whole_state()
    if not state:
        return
    weights, heads = split_model(state)
    method.method.model.save_pretrained(folder / MODEL_FOLDER, state_dict=weights)
    tokenizer.save_pretrained(folder / MODEL_FOLDER)
    save_atomically(heads, folder / HEAD_FILE)


class Observation:
    """Scores a run's model on the development scenes and draws some of them.

    Args:
        folder: Of the run.
        tokenizer: Of its model.
        benchmarks: Development sets, may be empty; scenes of the first one are drawn.
        boards: Those of the run, on rank 0.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: Tipsv2Tokenizer,
        benchmarks: Sequence[SegmentationBenchmark | ClassificationBenchmark],
        *,
        boards: Boards | None,
    ) -> None:
        self._folder, self._tokenizer = folder, tokenizer
        self._benchmarks, self._boards = benchmarks, boards

    def validate(self, step: int, method: ParallelMethod) -> Row:
        """Save the model and score it; called on every rank, scores are returned on rank 0."""
        save_model(self._folder, method, self._tokenizer)
        if self._boards is None:
            return {}
        encoder, row = self._scored_encoder(method), Row()
        for benchmark in self._benchmarks:
            row |= benchmark.quick_scores(encoder)
        print(json.dumps({"step": step, **row}), flush=True)
        shown = next(iter(self._benchmarks), None)
        if isinstance(shown, SegmentationBenchmark):
            scenes = shown.scenes[:_NUM_SHOWN]
            panel = scene_panel(encoder, scenes, shown.names)
            self._boards.add_panel(step, panel)
        return row

    def _scored_encoder(self, method: ParallelMethod) -> Encoder:
        """The model itself if it is whole and on the CPU, else the saved one."""
        if not method.is_sharded and method.device == torch.device("cpu"):
            return Tipsv2Encoder(method.method.model, self._tokenizer)
        return load_for_evaluation(self._folder / MODEL_FOLDER)

    def report(self, row: Row) -> None:
        """Add a log row to the boards."""
        if self._boards is not None:
            self._boards.add_row(row)
