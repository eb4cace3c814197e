"""Masks by a head from ten images with masks, against masks by the names of the same classes.

Claim: on other images of their kind the head's masks have a higher mIoU than those by names, and it
is fitted in less than a minute of CPU time.
Each of the rounds draws six everyday names, composes 10 and 40 scenes of Fluent 3D drawings of
them, and fits a head to the 10. Both ways compute the 40 masks by the service's own data plane.
Masks by names have the background threshold that is best on the 10; the head has a background of
its own. Intersections and unions are over whole images.
Run: python -m benchmarks.own_head --data DATA [--model bundled] [--rounds 4]; the folder is that of
     python -m training data
"""

import argparse
import contextlib
import io
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.scores.bootstrap import bootstrap
from service.messages import SegmentClass, SegmentImagesRequest
from tipserve_cli.engines.choice import load
from tipserve_cli.engines.engine import Engine
from training.__main__ import main as run_training
from training.data.concepts import all_concepts
from training.data.folder import DataFolder, common_names
from training.data.scenes import compose_scene
from training.evaluate.sets import MULTI_OBJECT

NUM_NAMES, NUM_SHOWN, NUM_JUDGED = 6, 10, 40
THRESHOLDS = (None, *(tenth / 10 for tenth in range(10)))


class Counts:
    """Pixels of the intersection and the union of each class, by scene: [S, K] each."""

    def __init__(self, hits: Sequence[NDArray[np.int64]], unions: Sequence[NDArray[np.int64]]):
        self.hit_SK, self.union_SK = np.stack(hits), np.stack(unions)

    def __len__(self) -> int:
        return len(self.hit_SK)


def miou(counts: Counts, weights_RS: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the classes that occur, in percent, for each row of weights."""
    union_RK = weights_RS @ counts.union_SK
    iou_RK = (weights_RS @ counts.hit_SK) / np.maximum(union_RK, 1)
    values_R: NDArray[np.float64] = 100 * iou_RK.mean(1, where=union_RK > 0)
    return values_R


def compose(data: DataFolder, seed: int) -> tuple[list[str], list[tuple[bytes, NDArray[np.uint8]]]]:
    """Names, and scenes as PNG with the labels of their pixels."""
    rng = np.random.default_rng(seed)
    names = [str(name) for name in rng.choice(sorted(common_names()), NUM_NAMES, replace=False)]
    source = data.source("test", styles=("fluent-3d",), names=frozenset(names), seed=seed)
    number = {concept.name: index for index, concept in enumerate(all_concepts(), start=1)}
    scenes = []
    for index in range(NUM_SHOWN + NUM_JUDGED):
        scene = compose_scene(source, index, MULTI_OBJECT)
        labels_HW = np.zeros(scene.mask_SS.shape, np.uint8)
        for label, name in enumerate(names, start=1):
            labels_HW[scene.mask_SS == number[name]] = label
        stream = io.BytesIO()
        Image.fromarray(scene.pixels_SS3).save(stream, "PNG")
        scenes.append((stream.getvalue(), labels_HW))
    return names, scenes


def fit(
    folder: Path,
    model: str,
    names: Sequence[str],
    scenes: Sequence[tuple[bytes, NDArray[np.uint8]]],
) -> float:
    """Write the images and masks, and train the head `own`; returns its CPU time in seconds."""
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for index, (image, labels_HW) in enumerate(scenes):
        (folder / "images" / f"{index}.png").write_bytes(image)
        Image.fromarray(labels_HW).save(folder / "masks" / f"{index}.png")
    arguments = ["--images", str(folder / "images"), "--masks", str(folder / "masks")]
    arguments += ["--names", ",".join(names), "--model", model]
    start = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        status = run_training(["head", *arguments, "--output", str(folder / "own.safetensors")])
    assert status == 0
    return time.process_time() - start


def count(
    engine: Engine,
    scenes: Sequence[tuple[bytes, NDArray[np.uint8]]],
    classes: Sequence[str],
    threshold: float | None = None,
) -> Counts:
    """Segment scenes and compare with their labels."""
    hits, unions = [], []
    for image, labels_HW in scenes:
        request = SegmentImagesRequest(
            images=(image,),
            classes=tuple(SegmentClass(name=name) for name in classes),
            background_threshold=threshold,
        )
        found_HW = engine.segment(request).result().labels_HW
        is_found_K = [found_HW == k for k in range(1, NUM_NAMES + 1)]
        is_true_K = [labels_HW == k for k in range(1, NUM_NAMES + 1)]
        pairs = list(zip(is_found_K, is_true_K, strict=True))
        hits.append(np.array([(found & true).sum() for found, true in pairs]))
        unions.append(np.array([(found | true).sum() for found, true in pairs]))
    return Counts(hits, unions)


def measure(data: DataFolder, model: str, seed: int) -> tuple[Counts, Counts, float]:
    """Counts by the head and by names on the judged scenes, and the CPU seconds of fitting."""
    names, scenes = compose(data, seed)
    shown, judged = scenes[:NUM_SHOWN], scenes[NUM_SHOWN:]
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        seconds = fit(folder, model, names, shown)
        engine = load([f"--model={model}", f"--heads={folder}", "--warm-up-limit-s=0"])
        try:
            ones = np.ones((1, NUM_SHOWN))
            best = max(THRESHOLDS, key=lambda t: miou(count(engine, shown, names, t), ones)[0])
            by_names = count(engine, judged, names, best)
            by_head = count(engine, judged, ["head:own"])
        finally:
            engine.close()
    values = [bootstrap(miou, counts) for counts in (by_head, by_names)]
    head, names_only = (f"{v.value:.1f} [{v.low:.1f}, {v.high:.1f}]" for v in values)
    print(f"{', '.join(names)}: head {head}, names {names_only} (threshold {best})", flush=True)
    return by_head, by_names, seconds


def main() -> None:
    """Print mIoU by the head and by names, their difference with interval, and the CPU time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    rounds = [
        measure(DataFolder(path=options.data), options.model, seed)
        for seed in range(options.rounds)
    ]
    # Classes of different rounds are different columns.
    head = joined([by_head for by_head, _, _ in rounds])
    names = joined([by_names for _, by_names, _ in rounds])
    values = {
        "head": bootstrap(miou, head),
        "names": bootstrap(miou, names),
        "difference": bootstrap(miou, head, names),
    }
    for title, value in values.items():
        print(f"{title}: mIoU {value.value:.1f} [{value.low:.1f}, {value.high:.1f}]")
    print(f"CPU time of fitting: {max(r[2] for r in rounds):.1f} s at most (claim: 60)")


def joined(rounds: Sequence[Counts]) -> Counts:
    """Counts of all rounds, with columns of its own for each."""

    def blocks(tables: Sequence[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
        before = np.cumsum([0, *(table.shape[1] for table in tables)])
        return [
            np.pad(row, (start, before[-1] - start - len(row)))
            for table, start in zip(tables, before, strict=False)
            for row in table
        ]

    return Counts(blocks([r.hit_SK for r in rounds]), blocks([r.union_SK for r in rounds]))


if __name__ == "__main__":
    main()
