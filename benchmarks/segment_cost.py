"""CPU time of a segmentation request whose class names are cached, against its vision pass.

Claim: with 150 classes and a mask of 1024 x 768 pixels as PNG, a request costs at most 1.25 times
the vision pass alone for a model of B/14's size. (The bundled student is so small that decoding
the image costs more than its vision pass.) A further mask of an image whose embeddings are kept
costs what making and writing it does. With three classes, quality fast costs at most 4 ms more than
published.
Run: python -m benchmarks.segment_cost [--model bundled-student | FOLDER] [--resolution 112]
     [--classes 150]
"""

import argparse
import io
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Final

import httpx
from PIL import Image

from model.image_codec import ImageLimits, decode_image
from model.package import open_package
from model.preprocess import prepare_image, target_size
from model.runtime.load import load_runtime
from tests.processes.server import start_server

SIZE: Final = (1024, 768)
LIMITS: Final = ImageLimits(max_bytes=1 << 24, max_pixels=1 << 26)
CLASSES: Final = Path("model/names/ade20k.txt").read_text(encoding="utf-8").splitlines()[1:]
LIMIT_S: Final = 120.0


def draw_image() -> bytes:
    """Return the README's scene as a JPEG of the mask's size."""
    with Image.open("examples/scene.png") as scene:
        photo = scene.convert("RGB").resize(SIZE, Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    photo.save(stream, "JPEG", quality=90)
    return stream.getvalue()


def measure(
    model: str, resolution: int, num_classes: int, num_repeats: int
) -> dict[str, list[float]]:
    """CPU milliseconds of the vision pass and of whole requests over REST, alternating."""
    package, image = open_package(model), draw_image()
    runtime = load_runtime(package, runtime="auto", num_threads=1)
    size_hw = target_size(
        *reversed(SIZE),
        resolution=resolution,
        fit="aspect",
        multiple=package.manifest.size_multiple,
    )
    pixels_B3HW = prepare_image(decode_image(image, LIMITS), size_hw)[None]
    costs: dict[str, list[float]] = defaultdict(list)
    classes = ",".join(CLASSES[:num_classes])
    asked = {
        "embed": {"outputs": "patches", "fit": "aspect"},
        "segment": {"classes": classes, "quality": "published"},
        "segment fast": {"classes": classes, "quality": "fast"},
        "segment fine": {"classes": classes, "quality": "fine"},
    }
    asked["segment fine again"] = asked["segment fine"]
    accepted = {"embed": "application/x-npy", "segment": "image/png"}
    flags = (f"--model={model}", "--lanes=1", "--cpus=1")
    with start_server(*flags) as service:
        for turn in range(num_repeats + 1):
            started = time.process_time()
            runtime.encode_images(pixels_B3HW)
            costs["vision pass"].append(1000 * (time.process_time() - started))
            for name, options in asked.items():
                query = {"resolution": str(resolution)} | options
                started = service.cpu_s()
                route, is_again = name.split()[0], name.endswith("again")
                url = f"{service.rest}/v1/images:{route}"
                headers = {"Content-Type": "image/jpeg", "Accept": accepted[route]}
                # What follows the end of a JPEG makes it another image for the cache.
                file = image + f"{name.removesuffix(' again')} {turn}".encode()
                answer = httpx.post(
                    url, params=query, content=file, headers=headers, timeout=LIMIT_S
                )
                is_kept = "cache;desc=hit" in answer.headers["server-timing"]
                assert is_kept == is_again, f"{name} is measured with the wrong cache"
                answer.raise_for_status()
                costs[name].append(1000 * (service.cpu_s() - started))
            if turn == 0:  # the first request fills the text cache
                for found in costs.values():
                    found.clear()
    return costs


def main() -> None:
    """Measure one model, and print medians and their ratios to the vision pass."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="bundled-student", help="bundled, or a folder")
    parser.add_argument("--resolution", type=int, help="pixels; the native size if left out")
    parser.add_argument("--classes", type=int, default=len(CLASSES), help="at most 150")
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    resolution = options.resolution or open_package(options.model).manifest.native_size
    print(
        f"{options.model} at {resolution} px, {options.classes} classes, mask {SIZE[0]} x {SIZE[1]}"
    )
    costs = measure(options.model, resolution, options.classes, options.repeats)
    base = statistics.median(costs["vision pass"])
    for name, times in costs.items():
        middle = statistics.median(times)
        print(f"{name:<18} {middle:8.1f} CPU ms {middle / base:6.2f} vision passes")


if __name__ == "__main__":
    main()
