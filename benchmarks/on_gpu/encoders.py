"""Throughput, latency and utilisation of the vision tower, by size, side, batch and library.

Shapes: B batch, H W pixels, 3 colour channels.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmarks.on_gpu.arithmetic import flops_per_image, peak_of
from benchmarks.on_gpu.contestants import CONTESTANTS, Contestant, Pixels, Setup
from benchmarks.on_gpu.timing import timed
from model.graphs import Precision

Row = dict[str, Any]
COMPUTE_RUNS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Combinations to measure.

    Attributes:
        variant: Released size.
        side: Side of the square images in pixels.
        batches: Batch sizes.
        names: Keys of `CONTESTANTS`.
        precisions: Precisions, each with every contestant.
        seconds: Measuring time per number.
    """

    variant: str
    side: int
    batches: Sequence[int]
    names: Sequence[str]
    precisions: Sequence[Precision]
    seconds: float


def measure(setup: Setup, grid: Grid, gemm: list[Row]) -> Iterator[Row]:
    """Return a row per contestant, precision and batch, or a row with the reason of a failure."""
    from transformers import Tipsv2Config  # noqa: PLC0415 - so that the script can say it is missing

    flops = flops_per_image(Tipsv2Config.from_pretrained(setup.package.path), grid.side)
    for name in grid.names:
        for precision in grid.precisions:
            what: Row = {"variant": grid.variant, "side": grid.side}
            what |= {"contestant": name, "precision": precision}
            peak = peak_of(gemm, precision)
            make = partial(CONTESTANTS[name], setup, precision)
            yield from _rows(what, make, grid, (flops, peak))


def _rows(
    what: Row,
    make: Callable[[], Contestant],
    grid: Grid,
    counted: tuple[int, float | None],
) -> Iterator[Row]:
    """Measure all batches of one contestant."""
    try:
        contestant = make()
    # Any failure becomes a row with the reason, and the next one is measured.
    except Exception as error:
        yield what | {"note": f"{type(error).__name__}: {error}"}
        return
    try:
        for batch in grid.batches:
            shape = (batch, 3, grid.side, grid.side)
            pixels_B3HW = np.random.default_rng(0).random(shape, dtype=np.float32)
            try:
                numbers = _numbers(contestant, pixels_B3HW, grid.seconds, counted)
            except Exception as error:
                yield what | {"batch": batch, "note": f"{type(error).__name__}: {error}"}
                break  # larger batches will not fit either
            yield what | {"batch": batch} | numbers
    finally:
        contestant.close()


def _numbers(
    contestant: Contestant,
    pixels_B3HW: Pixels,
    seconds: float,
    counted: tuple[int, float | None],
) -> Row:
    flops, peak = counted
    batch = len(pixels_B3HW)
    trip = timed(lambda: contestant.encode(pixels_B3HW), seconds)
    row: Row = {
        "images_per_s": batch / trip.median_s,
        "latency_ms": 1000 * trip.median_s,
        "latency_p95_ms": 1000 * trip.p95_s,
        "gflop_per_image": flops / 1e9,
        "runs": trip.num_runs,
    }
    if contestant.compute_s is not None:
        times = max(COMPUTE_RUNS, int(seconds / trip.median_s))
        computed_s = contestant.compute_s(pixels_B3HW, times) / times
        row["device_images_per_s"] = batch / computed_s
        if peak:
            row["mfu"] = flops * batch / computed_s / peak
    return row
