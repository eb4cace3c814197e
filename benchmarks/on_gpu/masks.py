"""Counted budget of a mask on a GPU server: of patches on the host, or of the device's labels.

Run: OPENBLAS_NUM_THREADS=1 python -m benchmarks.on_gpu.masks

Nothing runs on a GPU. The host's work is timed here, on patches of the bundled student repeated to
the width of B/14. Of the device's work the bytes and kernels are counted. docs/gpu.md has the
result.

Shapes: N patches, D width, K classes, H W pixels.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.on_gpu.budget import (
    CORES,
    DECODE_S,
    OPERATIONS,
    OPERATIONS_PER_S,
    REACHED,
    REQUEST_S,
    WIDTH,
    lane_copies_s,
    least_cpu_s,
    output_bytes,
    stacking_s,
)
from model.class_names import ade20k_names
from model.package import open_package
from model.pixel_labels import LABELS, labelled_map, pixel_labels, working_bytes
from model.runtime.load import load_runtime
from model.runtime.reducer import OnnxReducer, open_reducer
from model.segmentation import Background, segment
from model.text import TextTokenizer

# Of device memory, of which kernels that read and write reach about four fifths.
MEMORY_BYTES_PER_S: Final = 0.8 * 3.35e12
# Of the graph, and what starting one takes on the host. Meanwhile the device computes for the other
# lane.
NUM_KERNELS: Final = 11
LAUNCH_S: Final = 5e-6
SIZE_HW: Final = (480, 640)
NUM_CLASSES: Final = (3, 22, 150)


@dataclass(frozen=True, slots=True)
class MaskCost:
    """What a mask takes.

    Attributes:
        back_bytes: Bytes over PCIe back to the host.
        cpu_s: CPU seconds of the whole image.
        mask_s: Of them, those after the encoder.
        device_s: Seconds of the GPU after the encoder.
    """

    back_bytes: int
    cpu_s: float
    mask_s: float
    device_s: float = 0.0

    def images_per_s(self, side: int) -> dict[str, float]:
        """Images a second that the GPU in bf16 and the cores allow."""
        encoder_s = OPERATIONS[side] / (REACHED * OPERATIONS_PER_S["bf16"])
        return {"GPU": 1 / (encoder_s + self.device_s), f"{CORES} cores": CORES / self.cpu_s}


def device_s(num_classes: int, side: int) -> float:
    """Counted seconds of a reduction: what it makes is written and read once."""
    grid_hw = (side // 14, side // 14)
    moved_bytes = 2 * working_bytes(num_classes, grid_hw, SIZE_HW)
    return moved_bytes / MEMORY_BYTES_PER_S


def costs(
    values_ND: NDArray[np.float32], classes_KD: NDArray[np.float32], side: int
) -> tuple[MaskCost, MaskCost]:
    """A mask of patches, and one of labels."""
    grid_hw = (side // 14, side // 14)
    num_classes = len(classes_KD)
    host_s = least_cpu_s(lambda: segment(values_ND, classes_KD, grid_hw=grid_hw, size_hw=SIZE_HW))
    base_s = DECODE_S + REQUEST_S + stacking_s(side)
    of_patches = MaskCost(
        output_bytes(side, 1), base_s + lane_copies_s(side, 1) + host_s, mask_s=host_s
    )
    labels_HW = np.zeros(SIZE_HW, np.uint8)

    def prepare() -> object:
        return pixel_labels(
            classes_KD, source="values", grid_hw=grid_hw, size_hw=SIZE_HW, background=Background()
        )

    around_s = (
        least_cpu_s(prepare)
        + session_s()
        + NUM_KERNELS * LAUNCH_S
        + least_cpu_s(labels_HW.copy)
        + least_cpu_s(lambda: labelled_map({LABELS: labels_HW}, num_classes, grid_hw))
    )
    on_device = MaskCost(
        output_bytes(side, 0) + labels_HW.nbytes,
        base_s + lane_copies_s(side, 0) + around_s,
        mask_s=around_s,
        device_s=device_s(num_classes, side),
    )
    return of_patches, on_device


def session_s() -> float:
    """CPU seconds of a reduction apart from its arithmetic: of one patch, class and pixel."""
    reducer: OnnxReducer | None = open_reducer("cpu")
    one_11 = np.ones((1, 1), np.float32)
    reduction = pixel_labels(
        one_11, source="values", grid_hw=(1, 1), size_hw=(1, 1), background=Background()
    )
    assert reducer is not None
    assert reduction is not None
    return least_cpu_s(lambda: reducer.run_on_copy(reduction, one_11))


def main() -> None:
    """Print a line for each size, number of classes and way."""
    package = open_package("bundled-student")
    runtime = load_runtime(package, runtime="onnx", device="cpu", precision="fp32")
    tokens = TextTokenizer.from_package(package).encode(ade20k_names())
    names_KD = runtime.encode_texts(tokens.token_ids_BL, tokens.mask_BL)
    repeats = math.ceil(WIDTH / names_KD.shape[1])
    with Image.open("examples/scene.png") as scene:
        photo = scene.convert("RGB")
    for side in OPERATIONS:
        pixels_HW3 = np.asarray(photo.resize((side, side)), np.float32) / np.float32(255)
        values_ND = runtime.encode_images(pixels_HW3.transpose(2, 0, 1)[None].copy()).values_BND[0]
        for num_classes in NUM_CLASSES:
            patches_ND, classes_KD = (
                np.tile(rows, repeats)[:, :WIDTH] for rows in (values_ND, names_KD[:num_classes])
            )
            both = costs(patches_ND, classes_KD, side)
            for way, cost in zip(("patches", "labels"), both, strict=True):
                rates = cost.images_per_s(side)
                print(f"{side} px, {num_classes} classes, {way}: ", end="")
                print(f"{cost.back_bytes / 1e6:.3f} MB back, ", end="")
                print(f"{1000 * cost.mask_s:.2f} of {1000 * cost.cpu_s:.2f} ms of CPU, ", end="")
                print(f"{1000 * cost.device_s:.3f} ms of the GPU; ", end="")
                print("; ".join(f"{name} {rate:,.0f}/s" for name, rate in rates.items()))


if __name__ == "__main__":
    main()
