"""CPU time and bytes of each answer encoding: the one in use and its alternatives.

Claim: for each form the service uses the encoder with the least CPU time of those measured here, or
one within 10 % of it that needs no further library.
Run: python -m benchmarks.codecs; libraries that are not installed are left out
     (pip install msgspec scikit-image rasterio for all)
"""

import argparse
import base64
import io
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import TypeAdapter
from safetensors.numpy import save

from benchmarks.class_names import CLASS_NAMES
from model.package import open_package
from model.preprocess import prepare_image
from model.runtime.load import load_runtime
from model.segmentation import segment
from model.text import TextTokenizer
from service.outputs.contours import class_polygons, class_runs, compress_counts
from service.outputs.masks import encode_mask_png, encode_npy, encode_overlay_png, palette
from service.rest.responses import dump_pieces, encode_array

Work = Callable[[], Any]
Labels = NDArray[np.unsignedinteger]
Case = tuple[str, str, Work]

SIZE_HW: Final = (768, 1024)
ANY: Final[TypeAdapter[Any]] = TypeAdapter(Any)


def optional(name: str) -> ModuleType | None:
    """Import an optional library; None if it is not installed."""
    try:
        return import_module(name)
    except ImportError:
        return None


def real_mask() -> tuple[Labels, NDArray[np.uint8], NDArray[np.float32]]:
    """Return the student's mask of the README's scene for 150 names, the image and patches."""
    package = open_package("bundled-student")
    runtime = load_runtime(package, runtime="auto", num_threads=1)
    tokenizer = TextTokenizer.from_package(package)
    batches = [tokenizer.encode([name]) for name in CLASS_NAMES]
    classes = [runtime.encode_texts(batch.token_ids_BL, batch.mask_BL)[0] for batch in batches]
    with Image.open("examples/scene.png") as scene:
        image = scene.convert("RGB").resize(SIZE_HW[::-1], Image.Resampling.LANCZOS)
    pixels_HW3 = np.asarray(image)
    output = runtime.encode_images(prepare_image(pixels_HW3, (112, 154))[None])
    patches_ND = output.patches_BND[0]
    found = segment(patches_ND, np.stack(classes), grid_hw=output.grid_hw, size_hw=SIZE_HW)
    return found.labels_HW, pixels_HW3, patches_ND


def opencv_png(cv2: ModuleType, labels_HW: Labels) -> bytes:
    """Encode a grey PNG with OpenCV's fastest strategy."""
    options = [cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
    written: bytes = cv2.imencode(".png", labels_HW, options)[1].tobytes()
    return written


def pillow_png(samples: NDArray[np.unsignedinteger], level: int) -> bytes:
    """Encode a PNG with Pillow, with a palette for labels."""
    image = Image.fromarray(samples.astype(np.uint8))
    if samples.ndim == 2:
        image.putpalette(palette().tobytes())
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=level)
    return stream.getvalue()


def images(labels_HW: Labels, pixels_HW3: NDArray[np.uint8]) -> Iterator[Case]:
    """Candidates for masks and overlays as PNG."""
    yield "palette PNG", "ours: rows that changed, run lengths", lambda: encode_mask_png(labels_HW)
    for level in (1, 4, 6):
        yield "palette PNG", f"Pillow, level {level}", partial(pillow_png, labels_HW, level)
    if cv2 := optional("cv2"):
        yield (
            "palette PNG",
            "OpenCV, run lengths (grey, no palette)",
            partial(opencv_png, cv2, labels_HW),
        )
    yield "overlay PNG", "ours: as the mask", lambda: encode_overlay_png(labels_HW, pixels_HW3)
    overlay_HW3 = np.asarray(Image.open(io.BytesIO(encode_overlay_png(labels_HW, pixels_HW3))))
    for level in (1, 4):
        way = f"writing alone by Pillow, level {level}"
        yield "overlay PNG", way, partial(pillow_png, overlay_HW3, level)


def run_lengths(labels_HW: Labels) -> Iterator[Case]:
    """Candidates for COCO run lengths of all present classes."""
    num_classes = len(CLASS_NAMES)

    def ours() -> list[str]:
        return compress_counts([run.counts for run in class_runs(labels_HW, num_classes)])

    yield "run lengths", "ours, NumPy", ours
    if coco := optional("pycocotools.mask"):
        present = np.unique(labels_HW)
        yield (
            "run lengths",
            "pycocotools",
            lambda: [
                coco.encode(np.asfortranarray(labels_HW == k, dtype=np.uint8))["counts"]
                for k in present
            ],
        )


def polygons(labels_HW: Labels) -> Iterator[Case]:
    """Candidates for outlines of all present classes."""
    present = np.unique(labels_HW)
    num_classes = len(CLASS_NAMES)
    yield "polygons", "ours, NumPy (exact)", lambda: class_polygons(labels_HW, num_classes)
    if cv2 := optional("cv2"):
        yield (
            "polygons",
            "OpenCV (through pixel centres)",
            lambda: [
                cv2.findContours((labels_HW == k).astype(np.uint8), cv2.RETR_CCOMP, 2)[0]
                for k in present
            ],
        )
    if features := optional("rasterio.features"):
        yield "polygons", "rasterio (exact)", lambda: list(features.shapes(labels_HW))
    if measure := optional("skimage.measure"):
        yield (
            "polygons",
            "scikit-image (between pixels)",
            lambda: [measure.find_contours(labels_HW == k, 0.5) for k in present],
        )


def texts(name: str, array: NDArray[np.generic]) -> Iterator[Case]:
    """Candidates for an array as JSON lists."""
    yield (
        name,
        "ours: orjson from the array",
        lambda: dump_pieces({"a": encode_array(array, "list")}),
    )
    yield name, "pydantic from lists", lambda: ANY.dump_json({"a": array.tolist()})
    yield name, "json from lists", lambda: json.dumps({"a": array.tolist()}).encode()
    if msgspec := optional("msgspec.json"):
        yield name, "msgspec from lists", lambda: msgspec.encode({"a": array.tolist()})


def binaries(labels_HW: Labels) -> Iterator[Case]:
    """Candidates for the mask as base64 in JSON, npy and safetensors."""
    array = labels_HW.astype(np.uint16)
    data = array.tobytes()
    name = "base64 in JSON"
    yield name, "ours: pybase64, orjson", lambda: dump_pieces({"a": encode_array(array, "base64")})
    yield (
        name,
        "base64, pydantic",
        lambda: ANY.dump_json({"a": base64.b64encode(data).decode()}),
    )
    yield "npy", "ours: NumPy", lambda: encode_npy(array)
    yield "safetensors", "ours: safetensors", lambda: save({"labels": array})


def num_bytes(written: Any) -> int | None:
    """Bytes on the wire; None if the result is not serialised yet."""
    if isinstance(written, bytes):
        return len(written)
    if isinstance(written, list) and written and isinstance(written[0], str | bytes):
        return sum(map(len, written))
    return None


def cpu_ms(work: Work, repeats: int) -> float:
    """Minimum CPU milliseconds over several runs."""
    work()
    times: list[float] = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        times.append(1000 * (time.process_time() - started))
    return min(times)


def main() -> None:
    """Measure everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    labels_HW, pixels_HW3, patches_ND = real_mask()
    cases = [
        *images(labels_HW, pixels_HW3),
        *run_lengths(labels_HW),
        *polygons(labels_HW),
        *texts("mask as JSON lists", labels_HW.astype(np.uint16)),
        *texts("patches as JSON lists", patches_ND),
        *binaries(labels_HW),
    ]
    print(
        f"mask {SIZE_HW[1]} x {SIZE_HW[0]}, {len(np.unique(labels_HW))} of {len(CLASS_NAMES)} "
        f"classes, patches {list(patches_ND.shape)}; CPU time, least of {options.repeats}, and "
        "its ratio to ours"
    )
    base, form = 1.0, ""
    for name, way, work in cases:
        cost = cpu_ms(work, options.repeats)
        if name != form:
            base, form = cost, name
        size = num_bytes(work())
        told = "" if size is None else f"{size:11,d} bytes"
        print(f"{name:<22} {way:<40} {cost:8.2f} ms {cost / base:6.2f} {told}")


if __name__ == "__main__":
    main()
