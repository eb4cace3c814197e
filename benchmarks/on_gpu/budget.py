"""Counted budget of one image on a GPU server: bytes over PCIe, CPU time, and what each allows.

Run: python -m benchmarks.on_gpu.budget

Nothing runs on a GPU: its operations are counted, its copies are counted in bytes, and the copies
on the host are timed here. docs/capacity.md has the result.

Shapes: B batch, N patches, D width.
"""

import time
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from model.runtime.tensorrt.buffers import FLOAT32, Slot, fetch, store

# An H100 SXM by its data sheet: dense operations a second, and PCIe 5.0 x16 in each direction, of
# which copies of some MB reach about four fifths.
OPERATIONS_PER_S: Final = {"fp32": 67e12, "bf16": 989e12}
REACHED: Final = 0.4
PCIE_BYTES_PER_S: Final = 0.8 * 64e9
CORES: Final = 16
LANES: Final = 2
# B/14: operations of an image (benchmarks/on_gpu/arithmetic.py), CPU seconds of a JPEG of 640 x 480
# outside the lanes (benchmarks/measured/b14.json), and of a request in the interpreter, of which
# one process runs one at a time (benchmarks/noop_overhead.py).
WIDTH: Final = 768
OPERATIONS: Final = {224: 50e9, 448: 226e9}
DECODE_S: Final = 0.0037
REQUEST_S: Final = 0.0004
BATCH: Final = 8
NUM_RUNS: Final = 20


def input_bytes(side: int) -> int:
    """Bytes of an image that are copied to the GPU."""
    return 3 * side * side * FLOAT32.dtype.itemsize


def output_bytes(side: int, num_patch_outputs: int) -> int:
    """Bytes that are copied back: both CLS tokens, and patches, values or both."""
    num_rows = 2 + num_patch_outputs * (side // 14) ** 2
    return num_rows * WIDTH * FLOAT32.dtype.itemsize


def lane_copies_s(side: int, num_patch_outputs: int) -> float:
    """CPU seconds of an image's copies in a lane, timed: to page-locked memory and out of it."""
    pixels_B3HW = np.ones((BATCH, 3, side, side), np.float32)
    given = Slot("pixel_values", pixels_B3HW.shape, FLOAT32, 0)
    num_rows = output_bytes(side, num_patch_outputs) // (WIDTH * FLOAT32.dtype.itemsize)
    made = Slot("outputs", (BATCH, num_rows, WIDTH), FLOAT32, 0)
    host = np.zeros(max(given.num_bytes, made.num_bytes), np.uint8)
    address = host.ctypes.data

    def copy() -> None:
        store(given, address, pixels_B3HW)
        fetch(made, address, np.empty(made.shape, np.float32))

    return least_cpu_s(copy) / BATCH


def stacking_s(side: int) -> float:
    """CPU seconds of an image's copy into its batch, timed; another thread than a lane's."""
    images = [np.ones((3, side, side), np.float32) for _ in range(BATCH)]
    return least_cpu_s(lambda: np.stack(images)) / BATCH


def images_per_s(
    side: int, num_patch_outputs: int, *, copies_s: float, cpu_s: float
) -> Mapping[str, float]:
    """Images a second that each resource allows, one image a request.

    Args:
        side: Of the square image, in pixels.
        num_patch_outputs: Number of requested patch outputs.
        copies_s: CPU seconds of an image in a lane.
        cpu_s: CPU seconds of an image in all threads.
    """
    return {
        **{
            f"GPU, {precision}": REACHED * operations / OPERATIONS[side]
            for precision, operations in OPERATIONS_PER_S.items()
        },
        "PCIe to the GPU": PCIE_BYTES_PER_S / input_bytes(side),
        "PCIe back": PCIE_BYTES_PER_S / output_bytes(side, num_patch_outputs),
        f"{LANES} lanes' copies": LANES / copies_s,
        f"{CORES} cores": CORES / cpu_s,
        "one process": 1 / REQUEST_S,
    }


def binding(rates: Mapping[str, float], precision: str) -> str:
    """The resource that allows fewest images with graphs of this precision."""
    usable = {
        name: rate
        for name, rate in rates.items()
        if not name.startswith("GPU") or name.endswith(precision)
    }
    return min(usable, key=lambda name: usable[name])


def least_cpu_s(run: Callable[[], object]) -> float:
    """The least CPU seconds of this thread for a call."""
    times = []
    for _ in range(NUM_RUNS):
        began = time.thread_time()
        run()
        times.append(time.thread_time() - began)
    return min(times)


def main() -> None:
    """Print a table for each size and kind of request."""
    for side in OPERATIONS:
        for what, num_patch_outputs in (("cls1", 0), ("patches", 1), ("patches, values", 2)):
            copies_s = lane_copies_s(side, num_patch_outputs)
            cpu_s = DECODE_S + REQUEST_S + stacking_s(side) + copies_s
            rates = images_per_s(side, num_patch_outputs, copies_s=copies_s, cpu_s=cpu_s)
            there, back = input_bytes(side) / 1e6, output_bytes(side, num_patch_outputs) / 1e6
            print(f"B/14 at {side} px, {what}: {there:.2f} MB there, {back:.3f} MB back, ", end="")
            print(f"{1000 * copies_s:.2f} ms in a lane, {1000 * cpu_s:.1f} ms of CPU")
            print("  " + "; ".join(f"{name} {rate:,.0f}/s" for name, rate in rates.items()))
            print("  " + "; ".join(f"{p}: {binding(rates, p)} binds" for p in OPERATIONS_PER_S))


if __name__ == "__main__":
    main()
