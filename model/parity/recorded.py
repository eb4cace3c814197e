"""Reference outputs that a package keeps, to check a runtime on the machine that serves.

They are few, so that a package of B/14 grows by 0.6 MB: small images that are enlarged to the
native size, all masks, and the embeddings of some patches. A mask depends on every patch.

Shapes: B batch, S recorded patches, P recorded pixels of a map, N patches, L tokens, D embedding
width, K classes, H W pixels, h w pixels of a thumbnail.
"""

import math
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from model.graphs import DENSE_TASKS, Precision
from model.manifest import RECORDED_FILE, ParityEntry
from model.package import ModelPackage, PackageError
from model.parity.inputs import CLASS_NAMES, SENTENCES, VisionInput, gate_images, image_batch
from model.parity.measure import Reference, Samples, TextCase, VisionCase, measure
from model.runtime.base import Runtime, VisionOutput
from model.runtime.choice import RuntimeChoice
from model.runtime.loaded_graphs import TOWERS, LoadedGraph, loaded_graphs
from model.segmentation import upsample_bilinear
from model.text import TokenBatch

Thumbnails = NDArray[np.uint8]
# A package is untrusted, and this file is read into memory.
MAX_BYTES: Final = 32 * 2**20
THUMBNAIL_SIDE: Final = 96
NUM_PATCHES: Final = 4
NUM_POINTS: Final = 64
# Images of one call: engines are tuned for several, and two show whether a batch mixes its items.
BATCH: Final = 2
# A dense map has eight times the rows and columns of the patches.
PIXELS_OF_A_PATCH: Final = 64
RECORDED_TEXTS: Final = (*CLASS_NAMES[:10], *SENTENCES)


def gate_thumbnails() -> Thumbnails:
    """The gate's images, uint8 [B, 3, h, w]."""
    side = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    pixels_B3hw = image_batch(gate_images(), side, batch=len(gate_images()))
    return np.round(255 * pixels_B3hw).astype(np.uint8)


def enlarged(thumbnails_B3hw: Thumbnails, size_hw: tuple[int, int]) -> VisionInput:
    """Make model input of this height and width; masks have the size of the thumbnails."""
    batch, channels, *side = thumbnails_B3hw.shape
    planes = thumbnails_B3hw.reshape(-1, *side).astype(np.float32) / np.float32(255)
    large = upsample_bilinear(planes, size_hw).reshape(batch, channels, *size_hw)
    return VisionInput(large, ((side[0], side[1]),) * batch)


def write_recorded(reference: Reference, thumbnails_B3hw: Thumbnails, folder: Path) -> None:
    """Write the file of a package from outputs of all thumbnails in one case, and of all texts."""
    (case,), (text,) = reference.vision, reference.text
    samples = _sampled(case)
    arrays: dict[str, NDArray[Any]] = {
        "images": thumbnails_B3hw,
        "size": np.array(case.pixels_B3HW.shape[2:]),
        "cls1": case.output.cls1_BD,
        "cls2": case.output.cls2_BD,
        "rows": samples.rows_BS,
        "patches": samples.of_patches(case.output.patches_BND),
        "values": samples.of_patches(case.output.values_BND),
        "classes": reference.classes_KD,
        "labels": np.stack([labels_HW for labels_HW, _ in case.masks]).astype(np.uint8),
        "token_ids": text.given.token_ids_BL,
        "mask": text.given.mask_BL,
        "text_embeddings": text.output_BD,
        "points": samples.points_BP,
        **{task: samples.of_map(maps) for task, maps in case.dense.items()},
    }
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    metadata = {"reference": reference.name, "features": reference.features}
    save_file(contiguous, folder / RECORDED_FILE, metadata=metadata)


def read_recorded(package: ModelPackage) -> Reference | None:
    """Read a package's reference outputs; None if it has none, as earlier versions wrote it.

    Raises:
        PackageError: The file is damaged.
    """
    if RECORDED_FILE not in package.manifest.files:
        return None
    path = package.file(RECORDED_FILE)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES} bytes")
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
            metadata = file.metadata() or {}
        return _reference(arrays, metadata, package)
    except (SafetensorError, KeyError, ValueError, IndexError, TypeError) as error:
        raise PackageError(
            f"the reference outputs in {path} are damaged ({error}): export the model again"
        ) from error


def check_runtime(
    reference: Reference, package: ModelPackage, choice: RuntimeChoice, runtime: Runtime
) -> list[ParityEntry]:
    """Compare what a runtime computes here with the reference outputs of `read_recorded`.

    Returns:
        An entry for each graph that the reference has outputs of. Float32 on a GPU is held to the
        limits of fp16: it may round to TF32, and what would be taken instead is a CPU. A runtime
        that takes pixels of 8 bits is held to those of bf16, as the recorded images have more: of
        the bundled student, rounding them alone changes 0.2 % of the pixels of masks.

    Raises:
        ParityError: An output has a wrong shape, or the runtime fails.
    """
    judged = TOWERS | reference.tasks

    def rounding(graph: LoadedGraph) -> Precision | None:
        if runtime.takes_bytes and graph.part != "text" and graph.precision != "int8":
            return "bf16"
        return "fp16" if choice.device == "gpu" and graph.precision == "fp32" else None

    return [
        measure(reference, runtime, graph, rounding=rounding(graph))
        for graph in loaded_graphs(package.manifest, choice.runtime, choice.precision)
        if graph.part in judged
    ]


def _sampled(case: VisionCase) -> Samples:
    """Choose places, other ones in each image."""
    generator = np.random.default_rng(0)
    batch, num_patches = case.output.patches_BND.shape[:2]
    sides = [maps.shape[-2] * maps.shape[-1] for maps in case.dense.values()]

    def places(count: int, of: int) -> NDArray[np.int64]:
        chosen = [generator.choice(of, min(count, of), replace=False) for _ in range(batch)]
        return np.stack(chosen).astype(np.int64)

    return Samples(
        rows_BS=places(NUM_PATCHES, num_patches),
        points_BP=places(NUM_POINTS if sides else 0, sides[0] if sides else 1),
    )


def _reference(
    arrays: dict[str, NDArray[Any]], metadata: dict[str, str], package: ModelPackage
) -> Reference:
    height, width = map(int, arrays["size"])
    patch = package.manifest.patch_size
    grid_hw = (height // patch, width // patch)
    _check(arrays, package, grid_hw)
    none_clear = np.zeros(arrays["labels"].shape[1:], np.bool_)

    def case(part: slice) -> VisionCase:
        return VisionCase(
            pixels_B3HW=enlarged(arrays["images"][part], (height, width)).pixels_B3HW,
            output=VisionOutput(
                cls1_BD=arrays["cls1"][part],
                cls2_BD=arrays["cls2"][part],
                patches_BND=arrays["patches"][part],
                values_BND=arrays["values"][part],
                grid_hw=grid_hw,
            ),
            masks=tuple((labels_HW, none_clear) for labels_HW in arrays["labels"][part]),
            dense={task: arrays[task][part] for task in DENSE_TASKS if task in arrays},
            samples=Samples(rows_BS=arrays["rows"][part], points_BP=arrays["points"][part]),
        )

    given = TokenBatch(token_ids_BL=arrays["token_ids"], mask_BL=arrays["mask"])
    firsts = range(0, len(arrays["images"]), BATCH)
    return Reference(
        name=metadata["reference"],
        features=metadata["features"],
        cpu_precision=package.manifest.cpu_precision,
        classes_KD=arrays["classes"],
        vision=tuple(case(slice(first, first + BATCH)) for first in firsts),
        text=(TextCase(given=given, output_BD=arrays["text_embeddings"]),),
    )


def _check(
    arrays: dict[str, NDArray[Any]], package: ModelPackage, grid_hw: tuple[int, int]
) -> None:
    """Check what is computed with before anything is compared; `measure` compares the shapes."""
    images = arrays["images"]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images is {images.dtype} {list(images.shape)}, not uint8 [B, 3, h, w]")
    for name, array in arrays.items():
        if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise ValueError(f"{name} is not finite")
    num_patches = math.prod(grid_hw)
    if not 0 < num_patches <= (package.manifest.max_size // package.manifest.patch_size) ** 2:
        raise ValueError(f"the images have {num_patches} patches")
    for name, end in (("rows", num_patches), ("points", PIXELS_OF_A_PATCH * num_patches)):
        of_images_BS = arrays[name]
        if of_images_BS.ndim != 2 or len(of_images_BS) != len(images):
            raise ValueError(f"{name} has no indices for {len(images)} images")
        if ((of_images_BS < 0) | (of_images_BS >= end)).any():
            raise ValueError(f"{name} has an index outside of an image")
