"""Measure what batches cost on this machine, in CPU seconds on one thread, and write it as JSON.

Run: python -m benchmarks.batch_costs --model bundled-student --sides 112,224,448 --output FILE

CPU time equals the time of one lane with a core for itself. A running server measures the same in
wall-clock time, see `benchmarks.capacity`.
"""

import argparse
import datetime
import platform
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.batch_latency import photo_like_jpeg
from benchmarks.capacity import Cost, Curves
from model.image_codec import ImageLimits, decode_image
from model.package import ModelPackage, open_package
from model.preprocess import prepare_image
from model.runtime.base import Runtime
from model.runtime.load import load_runtime
from model.runtime.machine import this_hardware
from service.lanes.latency_model import fit_curve

BATCHES = (1, 2, 4)
TEXT_BATCHES = (1, 4, 16)
TEXT_TOKENS = 8
LIMITS = ImageLimits(max_bytes=1 << 24, max_pixels=1 << 26)
# Larger batches are not measured once a batch takes longer than this.
LONG_S = 2.0


def least_cpu_s(run: Callable[[], object], limit_s: float) -> float:
    """Minimum CPU seconds over several runs, at least two; other load can only add time."""
    best, began, count = float("inf"), time.monotonic(), 0
    while count < 2 or (time.monotonic() - began < limit_s and count < 50):
        started = time.process_time()
        run()
        best, count = min(best, time.process_time() - started), count + 1
    return best


def measure_images(runtime: Runtime, side: int, patch: int, limit_s: float) -> Cost:
    """Fit the cost line of square images."""
    pixels_3HW = np.random.default_rng(0).random((3, side, side), dtype=np.float32)
    seconds: dict[int, float] = {}
    for count in BATCHES:
        pixels_B3HW = np.stack([pixels_3HW] * count)
        run = partial(runtime.encode_images, pixels_B3HW)
        run()
        seconds[count] = least_cpu_s(run, limit_s)
        if seconds[count] > LONG_S:
            break
    curve = fit_curve(seconds)
    return Cost(
        label=f"image {side}x{side}",
        patches=(side // patch) ** 2,
        intercept_s=curve.intercept_s,
        slope_s=curve.slope_s,
    )


def measure_texts(runtime: Runtime, limit_s: float) -> Cost:
    """Fit the cost line of short texts."""
    seconds = {}
    for count in TEXT_BATCHES:
        ids_BL = np.full((count, TEXT_TOKENS), 5, np.int64)
        mask_BL = np.ones((count, TEXT_TOKENS), np.int64)
        run = partial(runtime.encode_texts, ids_BL, mask_BL)
        run()
        seconds[count] = least_cpu_s(run, limit_s)
    curve = fit_curve(seconds)
    return Cost(f"text {TEXT_TOKENS}", TEXT_TOKENS, curve.intercept_s, curve.slope_s)


def outside_s(side: int, limit_s: float) -> float:
    """CPU seconds of an image outside the model: decode and resize a 640 x 480 JPEG."""
    encoded = photo_like_jpeg(0)

    def prepare() -> None:
        prepare_image(decode_image(encoded, LIMITS), (side, side))

    return least_cpu_s(prepare, limit_s)


def measure(package: ModelPackage, sides: Sequence[int], limit_s: float) -> Curves:
    """Measure all costs that planning needs for one package on this machine."""
    runtime = load_runtime(package)
    manifest = package.manifest
    images = [measure_images(runtime, side, manifest.patch_size, limit_s) for side in sides]
    return Curves(
        model=manifest.name,
        machine=f"{this_hardware().cpu_name}, Python {platform.python_version()}",
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        how="CPU seconds on one thread, minimum of several runs",
        runtime=f"{runtime.name} {runtime.precision}",
        images=tuple(images),
        text=measure_texts(runtime, limit_s),
        outside_s=outside_s(manifest.native_size, limit_s),
    )


def main() -> None:
    """Measure one package, write the file and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", default="bundled-student", help="model package: bundled, or a folder"
    )
    parser.add_argument("--sides", default="112,224,448", help="comma-separated, in pixels")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each batch")
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    options = parser.parse_args()
    sides = [int(side) for side in options.sides.split(",")]
    curves = measure(open_package(options.model), sides, options.seconds)
    options.output.write_text(curves.to_json(), encoding="utf-8")
    print(curves.to_json())


if __name__ == "__main__":
    main()
