"""CPU time of a segmentation request whose class names are cached, against its vision pass.

Claim: with 150 classes and a mask of 1024 x 768 pixels, a request costs at most 1.25 times the
vision pass alone for a model of B/14's size. (The bundled student is so small that decoding the
image costs more than its vision pass; the output shows both.)
Run: python -m benchmarks.segment_cost [--model bundled-student | b14 | FOLDER] [--resolution 112]
     [--cache FOLDER]; b14 has random weights and is created once in the folder
"""

import argparse
import asyncio
import io
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from PIL import Image

from benchmarks.class_names import CLASS_NAMES
from benchmarks.one_thread import ONE_THREAD  # before the imports below, which import NumPy
from benchmarks.random_model import random_b14
from model.image_codec import ImageLimits
from model.package import open_package
from model.preprocess import as_planes
from model.runtime.load import load_runtime
from service.call import Call
from service.data_plane import DataPlane
from service.fair_pool import FairPool
from service.images import ImagePreparer, SizeRule
from service.messages import EmbedImagesRequest, SegmentClass, SegmentImagesRequest
from service.models.conversion import ModelSource
from service.models.loading import load_model, request_limits
from service.models.registry import ModelRegistry
from service.monitoring.metrics import Metrics
from service.outputs.masks import encode_mask_png
from service.request_gate import RequestGate
from service.settings import Settings

SIZE = (1024, 768)
LIMITS = ImageLimits(max_bytes=1 << 24, max_pixels=1 << 26)
CLASSES = tuple(SegmentClass(name=name) for name in CLASS_NAMES)
Work = Callable[[], object]


def draw_image() -> bytes:
    """Return the README's scene as a JPEG of the mask's size."""
    with Image.open("examples/scene.png") as scene:
        photo = scene.convert("RGB").resize(SIZE, Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    photo.save(stream, "JPEG", quality=90)
    return stream.getvalue()


@asynccontextmanager
async def serving(model: str) -> AsyncIterator[DataPlane]:
    """Run the core with one lane in this process."""
    settings = Settings(lanes=1, pool_threads=1, warm_up_limit_s=0)
    metrics = Metrics()
    models = ModelRegistry(metrics)
    served = load_model(settings, metrics, ModelSource(folder=model))
    models.put(served)
    with FairPool(1, "pool") as pool:
        plane = DataPlane(
            RequestGate(metrics),
            models,
            limits=request_limits(settings),
            max_image_patches=settings.max_batch_patches,
            pool=pool,
            jpeg_decode=settings.jpeg_decode,
        )
        plane.gate.open()
        yield plane
        served.close(10)


def new_call() -> Call:
    """Return call options with a long deadline."""
    return Call(request_id="benchmark", deadline=time.monotonic() + 600)


async def measure(
    plane: DataPlane, steps: dict[str, Work], options: argparse.Namespace
) -> dict[str, list[float]]:
    """Measure CPU milliseconds of each step and of whole requests, alternating."""
    image = draw_image()
    resolution: int = options.resolution
    segment = SegmentImagesRequest(images=(image,), classes=CLASSES, resolution=resolution)
    embed = EmbedImagesRequest(
        images=(image,), outputs=("patches",), resolution=resolution, fit="aspect"
    )
    costs: dict[str, list[float]] = {}

    def count(name: str, started: float) -> None:
        costs.setdefault(name, []).append(1000 * (time.process_time() - started))

    for turn in range(options.repeats + 1):
        for name, work in steps.items():
            started = time.process_time()
            work()
            count(name, started)
        started = time.process_time()
        await plane.embed_images(embed, new_call())
        count("embed", started)
        started = time.process_time()
        answer = await plane.segment_images(segment, new_call())
        count("segment", started)
        encode_mask_png(answer.segmentations[0].labels_HW)
        count("segment and PNG", started)
        if turn == 0:  # the first request fills the text cache
            costs.clear()
    return costs


def lone_steps(model: str, resolution: int) -> dict[str, Work]:
    """Return the vision pass and the decoding as separate steps."""
    package = open_package(model)
    runtime = load_runtime(package, runtime="auto", num_threads=1)
    rule = SizeRule(
        resolution=resolution,
        fit="aspect",
        patch_size=package.manifest.patch_size,
        multiple=package.manifest.size_multiple,
    )
    preparer = ImagePreparer(LIMITS, max_patches=10**6)
    image = draw_image()
    pixels_B3HW = as_planes(preparer.prepare(image, rule, param="image").pixels_3HW)[None]
    return {
        "vision pass": lambda: runtime.encode_images(pixels_B3HW),
        "decode": lambda: preparer.prepare(image, rule, param="image"),
    }


def report(costs: dict[str, list[float]]) -> None:
    """Print medians and their ratios to the vision pass."""
    middle = {name: statistics.median(times) for name, times in costs.items()}
    base = middle["vision pass"]
    for name, cost in middle.items():
        print(f"{name:<16} {cost:8.1f} ms {cost / base:6.2f} vision passes")
    print(
        f"masks add {middle['segment'] - middle['embed']:.1f} ms to embedding the same image; "
        f"a request costs {middle['segment'] / base:.2f} vision passes, "
        f"{middle['segment and PNG'] / base:.2f} with a PNG as answer"
    )


async def run(options: argparse.Namespace, folder: Path) -> None:
    """Load a model, measure and print."""
    if options.model == "b14":
        options.resolution = options.resolution or 224
        package = random_b14(options.cache or folder, options.resolution)
        options.model = str(package.path)
    else:
        package = open_package(options.model)
    options.resolution = options.resolution or package.manifest.native_size
    steps = lone_steps(options.model, options.resolution)
    print(
        f"{package.manifest.name} at {options.resolution} px, {len(CLASSES)} classes, JPEG and "
        f"mask {SIZE[0]} x {SIZE[1]}, {ONE_THREAD}, middle of {options.repeats}"
    )
    async with serving(options.model) as plane:
        report(await measure(plane, steps, options))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", default="bundled-student", help="bundled, b14, or a package's folder"
    )
    parser.add_argument(
        "--resolution", type=int, help="pixels; the model's native size if left out"
    )
    parser.add_argument("--cache", type=Path, help="folder that keeps b14")
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(options, Path(folder)))


if __name__ == "__main__":
    main()
