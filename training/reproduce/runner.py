"""Trains the planned runs that are missing, one after another, and measures each.

A stopped run resumes from its checkpoint; a measured run is not repeated. Measures are counts per
scene (of two or three objects), so that any two runs can be compared on the same scenes later.
Masks are used only to measure.

Shapes: S scenes, K candidate names, D width.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model.encoder import Encoder, Tipsv2Encoder, load_encoder
from model.files import atomic_file
from model.segmentation import l2_normalize
from training.data.batch import Batch
from training.data.folder import EMOJI_TRAIN_STYLES, DataFolder, common_names
from training.data.scenes import compose_scene
from training.evaluate.encoder import SceneEncoder, encode_texts
from training.evaluate.ranking import rank
from training.evaluate.sets import MULTI_OBJECT, SegmentationBenchmark
from training.evaluate.zero_shot_segmentation import (
    SceneCounts,
    count_scenes,
    largest_object_scorer,
    painted_scorer,
    patch_scorer,
)
from training.methods.teacher import HEAD_FILE, MODEL_FOLDER
from training.reproduce.plan import PlannedRun
from training.run import run as train
from training.trainer import BatchSource

Measures = Mapping[str, NDArray[np.float64]]
# Validation scenes, test scenes in the styles of training, and test scenes in Fluent 3D.
Benchmarks = Sequence[SegmentationBenchmark]
# The nine prompts of TIPSv2's own evaluation; not chosen on any scene.
TEMPLATES = "tcl"
KINDS = ("patches", "values")
PAINTED = "painted CLS1"
LARGEST = "largest object"
RETRIEVAL = (
    "short text to image",
    "short image to text",
    "long text to image",
    "long image to text",
)
MEASURES = "measures.npz"
AVERAGE_MEASURES = "average-measures.npz"
RECORD = "record.json"


class BatchMemory:
    """Batches by step of the latest stream, with 8-bit pixels.

    Composing a scene takes a CPU about a quarter of a small model's step, and all variants of a
    seed see the same batches.
    """

    def __init__(self) -> None:
        self._stream = ""
        self._batches: dict[int, Batch] = {}

    def share(self, stream: str, batches: BatchSource) -> "SharedBatches":
        """Wrap a source; batches of the latest `stream` are reused.

        Args:
            stream: Identifies all that a batch depends on, except its step.
            batches: The source.
        """
        if stream != self._stream:
            self._stream, self._batches = stream, {}
        return SharedBatches(batches, self._batches)


class SharedBatches:
    """A batch source that keeps its batches."""

    def __init__(self, batches: BatchSource, memory: dict[int, Batch]) -> None:
        self._batches, self._memory = batches, memory

    def loader(self, first_step: int, *, num_workers: int) -> Iterator[Batch]:
        """Iterate from a step on; batches that are not in memory come from the source."""
        step = first_step
        while step in self._memory:
            kept = self._memory[step]
            yield kept
            step += 1
        for number, batch in enumerate(self._batches.loader(step, num_workers=num_workers), step):
            self._memory[number] = batch
            yield batch


def make_benchmarks(data: DataFolder, *, size: int, num_scenes: int) -> Benchmarks:
    """Compose the measuring scenes of the 50 everyday names, two or three objects each."""
    scenes = replace(MULTI_OBJECT, size=size)

    def benchmark(name: str, styles: tuple[str, ...]) -> SegmentationBenchmark:
        is_val = name == "val"
        split = data.source("val" if is_val else "test", styles=styles, names=common_names())
        count = max(1, num_scenes // 2) if is_val else num_scenes
        composed = [compose_scene(split, index, scenes) for index in range(count)]
        return SegmentationBenchmark(name=name, scenes=composed, names=sorted(split.names))

    return (
        benchmark("val", EMOJI_TRAIN_STYLES),
        benchmark("seen", EMOJI_TRAIN_STYLES),
        benchmark("unseen", ("fluent-3d",)),
    )


def measure(encoder: Encoder, benchmarks: Benchmarks) -> dict[str, NDArray[np.float64]]:
    """Measure an encoder in evaluation mode.

    Returns:
        Arrays by "SET/ROW/FIELD" for the fields of SceneCounts, and by "SET/retrieval/DIRECTION"
        whether the nearest neighbour is right, float64 [S] of 0 and 1.
    """
    arrays: dict[str, NDArray[np.float64]] = {}
    for benchmark in benchmarks:
        encoded = SceneEncoder(encoder, benchmark.scenes)
        for row, counts in _segmentation(benchmark, encoded).items():
            for item in fields(SceneCounts):
                arrays[f"{benchmark.name}/{row}/{item.name}"] = getattr(counts, item.name)
        for direction, hit_S in _retrieval(benchmark, encoded, encoder).items():
            arrays[f"{benchmark.name}/retrieval/{direction}"] = hit_S
    return arrays


def counts_of(measures: Measures, scenes: str, row: str) -> SceneCounts:
    """Counts of one row of the result of `measure`; the row "chance" is a random guess."""
    if row == "chance":
        return counts_of(measures, scenes, LARGEST).guessed()
    return SceneCounts(
        **{item.name: measures[f"{scenes}/{row}/{item.name}"] for item in fields(SceneCounts)}
    )


def _segmentation(
    benchmark: SegmentationBenchmark, encoder: SceneEncoder
) -> dict[str, SceneCounts]:
    classes_KD = encoder.classes(benchmark.names, TEMPLATES)
    scorers = {kind: patch_scorer(partial(encoder.feature, kind), classes_KD) for kind in KINDS}
    scorers[PAINTED] = painted_scorer(partial(encoder.feature, "cls1"), classes_KD)
    scorers[LARGEST] = largest_object_scorer(benchmark.names)
    return {
        row: count_scenes(benchmark.scenes, benchmark.names, scorer)
        for row, scorer in scorers.items()
    }


def _retrieval(
    benchmark: SegmentationBenchmark,
    encoded: SceneEncoder,
    encoder: Encoder,
) -> dict[str, NDArray[np.float64]]:
    """Recall at 1 among all scenes: short captions by CLS1, whole-scene captions by CLS2."""
    hits: dict[str, NDArray[np.float64]] = {}
    captions = [scene.captions for scene in benchmark.scenes]
    streams = {
        "short": ("cls1", [caption.short for caption in captions]),
        "long": ("cls2", [caption.scene for caption in captions]),
    }
    for name, (token, texts) in streams.items():
        images_SD = l2_normalize(
            np.stack([encoded.feature(token, scene) for scene in benchmark.scenes])
        )
        texts_SD = l2_normalize(encode_texts(encoder, texts))
        right_SS = np.asarray(texts)[:, None] == np.asarray(texts)
        hits[f"{name} text to image"] = _found(texts_SD @ images_SD.T, right_SS)
        hits[f"{name} image to text"] = _found(images_SD @ texts_SD.T, right_SS)
    return hits


def _found(scores_SS: NDArray[np.float32], right_SS: NDArray[np.bool_]) -> NDArray[np.float64]:
    hit_S: NDArray[np.float64] = (rank(scores_SS, right_SS).rank_Q == 0).astype(np.float64)
    return hit_S


def save_measures(measures: Measures, path: Path) -> None:
    """Write the result of `measure` atomically."""
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **measures)


def load_measures(path: Path) -> dict[str, NDArray[np.float64]]:
    """Read the file of `save_measures`."""
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Facts of a finished run besides its scores.

    Attributes:
        config: The whole configuration as text.
        num_images: Training images, without those of its start.
        cpu_s: Processor seconds of the training, in the call that finished it.
        is_whole: Whether that call also started it, so that `cpu_s` is for the whole run.
    """

    config: str
    num_images: int
    cpu_s: float
    is_whole: bool

    def write(self, path: Path) -> None:
        """Write as JSON."""
        values = {name: getattr(self, name) for name in self.__slots__}
        path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def read_record(folder: Path) -> Record | None:
    """The record of a run; None if it is not finished."""
    path = folder / RECORD
    if not path.exists():
        return None
    return Record(**json.loads(path.read_text(encoding="utf-8")))


def make_runs(
    runs: Sequence[PlannedRun], benchmarks: Benchmarks, *, after_each: Callable[[], None]
) -> None:
    """Train and measure all runs that are not finished.

    Args:
        runs: In an order in which each follows those that it needs.
        benchmarks: The scenes that every run is measured on.
        after_each: Called after each new run, for example to write the tables.

    Raises:
        ValueError: A finished run has other settings.
    """
    memory = BatchMemory()
    for run in runs:
        record, folder = read_record(run.config.folder), run.config.folder
        if record is not None and record.config != repr(run.config):
            raise ValueError(f"{folder} was made with other settings; choose another --runs folder")
        lacks_average = run.has_average and not (folder / AVERAGE_MEASURES).exists()
        if record is None:
            _make_run(run, benchmarks, memory)
        if lacks_average:
            _measure_average(folder, benchmarks)
        if record is None or lacks_average:
            after_each()


def _make_run(run: PlannedRun, benchmarks: Benchmarks, memory: BatchMemory) -> None:
    folder, config = run.config.folder, run.config
    print(f"{config.runs.name}: {run.variant}", flush=True)
    is_new = not folder.exists()
    _share_text(run)
    stream = repr((config.data, config.batch_size, config.num_steps))
    started_s = time.process_time()
    path = train(config, share=lambda batches: memory.share(stream, batches))
    cpu_s = time.process_time() - started_s
    if run.is_measured:
        arrays = measure(load_encoder(path), benchmarks)
        save_measures(arrays, folder / MEASURES)
    record = Record(
        config=repr(config),
        num_images=config.num_steps * config.batch_size,
        cpu_s=round(cpu_s, 1),
        is_whole=is_new,
    )
    record.write(folder / RECORD)


def _measure_average(folder: Path, benchmarks: Benchmarks) -> None:
    """Measure the model with its averaged encoder, which was its teacher."""
    encoder = Tipsv2Encoder.load(folder / MODEL_FOLDER)
    state = torch.load(folder / HEAD_FILE, map_location="cpu", weights_only=True)
    prefix = "teacher_tower."
    tower = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    encoder.model.vision_model.load_state_dict(tower)
    save_measures(measure(encoder, benchmarks), folder / AVERAGE_MEASURES)


def _share_text(run: PlannedRun) -> None:
    """Copy tokenizer and warmed-up text tower of the first start to another one."""
    if run.text_from is None:
        return
    run.config.folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer", "text-tower.pt"):
        source, target = run.text_from / name, run.config.folder / name
        if source.is_dir() and not target.exists():
            shutil.copytree(source, target)
        elif source.is_file() and not target.exists():
            shutil.copyfile(source, target)
