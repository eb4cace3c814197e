"""Scores of a cell encoder: the segmentation sets of the other models, at its own native size.

Shapes: B images, S their side, N cells, D width, K names.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from model.cell_encoder import CellEncoder
from model.manifest import ScoreEntry
from model.scores.bootstrap import bootstrap
from model.scores.gate import STUDENT
from model.segmentation import l2_normalize
from training.evaluate.report import CHANCE, PAINTED, SEGMENTATION
from training.evaluate.sets import SegmentationBenchmark
from training.evaluate.zero_shot_segmentation import SceneCounts


@torch.inference_mode()
def encode_images(
    encoder: CellEncoder, images: Sequence[NDArray[np.uint8]]
) -> dict[str, NDArray[np.float32]]:
    """Embeddings of images, enlarged to the native size: cls1 [B, D], patches, values [B, N, D]."""
    side = encoder.native_size
    rows = []
    for image in images:
        pixels = cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR)
        pixels_13SS = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
        rows.append([output[0].numpy() for output in encoder.vision(pixels_13SS)])
    cls1, _, patches, values = (np.stack(column) for column in zip(*rows, strict=True))
    return {"cls1": cls1, "patches": patches, "values": values}


@torch.inference_mode()
def encode_names(encoder: CellEncoder, names: Sequence[str]) -> NDArray[np.float32]:
    """Unit embeddings [K, D] of names without a template."""
    batch = encoder.tokenizer.encode(list(names))
    ids, mask = torch.from_numpy(batch.token_ids_BL), torch.from_numpy(batch.mask_BL)
    return l2_normalize(encoder.text(ids, mask).numpy())


def count_benchmark(
    encoder: CellEncoder, benchmark: SegmentationBenchmark
) -> dict[str, SceneCounts]:
    """Counts by kind of patch features, and of CLS1 painted over each scene."""
    classes_KD = encode_names(encoder, benchmark.names)
    features = encode_images(encoder, [scene.pixels_SS3 for scene in benchmark.scenes])
    kinds = {"values": "values", "patches": "patches", PAINTED: "cls1"}
    return {kind: benchmark.count(features[name], classes_KD) for kind, name in kinds.items()}


def score_benchmark(
    benchmark: SegmentationBenchmark, models: dict[str, CellEncoder]
) -> list[ScoreEntry]:
    """Entries of all models on one set; `models` has the served one as `STUDENT`."""
    rows: dict[str, SceneCounts] = {}
    for row, encoder in models.items():
        counts = count_benchmark(encoder, benchmark)
        rows[row] = counts["values"]
        if row == STUDENT:
            rows[f"{row}, patches"] = counts["patches"]
        rows[f"{row}, {PAINTED}"] = counts[PAINTED]
    entries = []
    for row, counts_of_row in rows.items():
        for metric, measure in (("mIoU", SceneCounts.miou), ("which", SceneCounts.which)):
            interval = bootstrap(measure, counts_of_row)
            numbers = {"value": interval.value, "low": interval.low, "high": interval.high}
            entries.append(_entry(benchmark, row, metric, numbers))
    guessed = rows[STUDENT].guessed()
    for metric, value in (("mIoU", guessed.miou()), ("which", guessed.which())):
        entries.append(_entry(benchmark, CHANCE, metric, {"value": value}))
    return entries


def _entry(
    benchmark: SegmentationBenchmark, row: str, metric: str, numbers: dict[str, float]
) -> ScoreEntry:
    return ScoreEntry(
        task=SEGMENTATION,
        split=benchmark.name,
        row=row,
        metric=metric,
        count=len(benchmark.scenes),
        **{key: round(value, 2) for key, value in numbers.items()},
    )
