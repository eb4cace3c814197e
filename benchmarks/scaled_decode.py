"""CPU time saved by decoding JPEG images at a reduced size, and its effect on embeddings.

Claim: `jpeg_decode=fast` takes about half the CPU time of `exact` for decoding and scaling, differs
by less than half a grey level on average, and keeps patch embeddings at a cosine of 0.9999.
Run: python -m benchmarks.scaled_decode [FOLDER ...] [--resolutions 112 224 448]
"""

import argparse
import sysconfig
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.image_codec import ImageLimits
from model.package import open_package
from model.preprocess import as_planes
from model.runtime.base import Runtime
from model.runtime.load import load_runtime
from service.images import ImagePreparer, JpegDecode, SizeRule

SITE = Path(sysconfig.get_path("purelib"))
# Photos from scikit-learn, scikit-image, Debian's backgrounds and this repository.
FOLDERS = (
    Path("examples"),
    Path("data/debian/usr/share/backgrounds"),
    SITE / "sklearn" / "datasets" / "images",
    SITE / "skimage" / "data",
)
LIMITS = ImageLimits(max_bytes=10**9, max_pixels=10**9)
REPEATS = 3


@dataclass(frozen=True, slots=True)
class Row:
    """Results of one photo: grey levels, cosines and CPU milliseconds."""

    max_levels: float
    mean_levels: float
    cls1_cosine: float
    min_patch_cosine: float
    mean_patch_cosine: float
    exact_ms: float
    fast_ms: float


def photos(folders: Sequence[Path]) -> Iterator[bytes]:
    """Return every JPEG file of these folders."""
    for folder in folders:
        for path in sorted(folder.glob("*.jp*g")):
            yield path.read_bytes()


def prepare(data: bytes, rule: SizeRule, way: JpegDecode) -> tuple[NDArray[np.float32], float]:
    """Return pixels [3, H, W] and the minimum CPU milliseconds of a few runs."""
    preparer = ImagePreparer(LIMITS, max_patches=10**6, jpeg_decode=way)
    times: list[float] = []
    for _ in range(REPEATS):
        started = time.process_time()
        pixels_3HW = preparer.prepare(data, rule, param="photo").pixels_3HW
        times.append(1000 * (time.process_time() - started))
    return as_planes(pixels_3HW), min(times)


def cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return cosines along the last axis."""
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    similar: NDArray[np.float32] = (a * b).sum(axis=-1) / lengths
    return similar


def compare(data: bytes, rule: SizeRule, runtime: Runtime) -> Row | None:
    """Compare both modes for one photo; None if it is too small to be reduced."""
    exact_3HW, exact_ms = prepare(data, rule, "exact")
    fast_3HW, fast_ms = prepare(data, rule, "fast")
    if (exact_3HW == fast_3HW).all():
        return None
    levels = 255 * np.abs(exact_3HW - fast_3HW)
    exact, fast = (runtime.encode_images(pixels[None]) for pixels in (exact_3HW, fast_3HW))
    patches_N = cosines(exact.patches_BND, fast.patches_BND)
    return Row(
        max_levels=float(levels.max()),
        mean_levels=float(levels.mean()),
        cls1_cosine=float(cosines(exact.cls1_BD, fast.cls1_BD).min()),
        min_patch_cosine=float(patches_N.min()),
        mean_patch_cosine=float(patches_N.mean()),
        exact_ms=exact_ms,
        fast_ms=fast_ms,
    )


def report(resolution: int, rows: Sequence[Row], num_photos: int) -> None:
    """One line."""
    if not rows:
        print(f"{resolution:4d} px: none of {num_photos} photos is large enough to be reduced")
        return
    table = np.array([[getattr(row, name) for name in Row.__slots__] for row in rows])
    worst, least, mean = table.max(axis=0), table.min(axis=0), table.mean(axis=0)
    print(
        f"{resolution:4d} px: {len(rows)} of {num_photos} photos are reduced; grey levels: mean "
        f"{mean[1]:.2f}, worst photo {worst[1]:.2f}, worst pixel {worst[0]:.0f}; cosine: CLS1 "
        f"least {least[2]:.5f}, patches least {least[3]:.4f}, mean {mean[4]:.5f}; CPU time "
        f"{table[:, 6].sum() / table[:, 5].sum():.2f} of exact ({mean[5]:.1f} to {mean[6]:.1f} ms)"
    )


def main() -> None:
    """Compare all photos at each resolution."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path, help="folders with JPEG photos")
    parser.add_argument("--resolutions", nargs="+", type=int, default=[112, 224, 448])
    parser.add_argument(
        "--model", default="bundled-student", help="model package: bundled, or a folder"
    )
    options = parser.parse_args()
    package = open_package(options.model)
    manifest = package.manifest
    runtime = load_runtime(package, runtime="auto", num_threads=1)
    images = list(photos(options.folders or FOLDERS))
    print(f"{len(images)} photos, fit aspect, {manifest.name} on {runtime.name}, one thread")
    for resolution in options.resolutions:
        rule = SizeRule(
            resolution=resolution,
            fit="aspect",
            patch_size=manifest.patch_size,
            multiple=manifest.size_multiple,
        )
        compared = [compare(data, rule, runtime) for data in images]
        report(resolution, [row for row in compared if row is not None], len(images))


if __name__ == "__main__":
    main()
