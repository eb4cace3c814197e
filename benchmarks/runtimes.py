"""Accuracy and cost per image of every runtime and precision, against torch.

Claim: the default on a CPU with AMX takes at most 1/1.8 of ONNX Runtime's time in float32, and at
least 99.5 % of the pixels of its masks keep their class.

Run: python -m benchmarks.runtimes [--model bundled-student | FOLDER] [--cell-limit-s 60]. A row
     needs its graph: `python -m model convert FOLDER OUTPUT --precision int8` writes one into a
     package. One thread. Times are CPU times of the process, the minimum of interleaved rounds.
"""

import argparse
import math
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

from threadpoolctl import threadpool_limits

from model.manifest import ParityEntry
from model.package import ModelPackage, open_package
from model.parity.gate import plan_proofs, run_reference
from model.parity.inputs import FloatArray, gate_images, image_batch
from model.parity.measure import measure
from model.runtime.choice import Machine, RuntimeRequest, choose_runtime
from model.runtime.load import load_chosen
from model.runtime.machine import installed_libraries, this_hardware

if TYPE_CHECKING:
    from model.encoder import Encoder

SIDES: Final = (224, 448)
BATCHES: Final = (1, 8)
# Enough rounds for a stable median; the time limit may allow fewer.
MIN_ROUNDS, MAX_ROUNDS = 2, 20
Encode = Callable[[FloatArray], object]


@dataclass(slots=True)
class Row:
    """One runtime and precision, its accuracy, and its milliseconds per image by side and batch."""

    name: str
    encode: Encode
    entry: ParityEntry | None = None
    cost_ms: dict[tuple[int, int], float] = field(default_factory=dict)


def open_rows(package: ModelPackage, encoder: "Encoder", stack: ExitStack) -> list[Row]:
    """Yield torch and every runtime of this machine, each compared with torch once loaded."""
    reference = run_reference(encoder, package)
    rows = [Row("torch fp32", partial(_encode, encoder))]
    for proof in plan_proofs(package.manifest, Machine(this_hardware(), installed_libraries())):
        runtime = stack.enter_context(closing(load_chosen(package, proof.choice)))
        (graph,) = (graph for graph in proof.graphs if graph.part == "vision")
        entry = measure(reference, runtime, graph)
        rows.append(Row(f"{runtime.name} {runtime.precision}", runtime.encode_images, entry))
        print(f"compared {rows[-1].name}", flush=True)
    return rows


def _encode(encoder: "Encoder", pixels_B3HW: FloatArray) -> object:
    import torch  # noqa: PLC0415 - heavy

    with torch.inference_mode():
        return encoder.vision(torch.from_numpy(pixels_B3HW))


def time_rows(rows: Sequence[Row], side: int, batch: int, *, limit_s: float) -> None:
    """Time all rows in turn until the time limit; the minimum counts."""
    pixels_B3HW = image_batch(gate_images(), (side, side), batch=batch)
    ends = time.monotonic() + limit_s
    for number in range(MAX_ROUNDS):
        if number >= MIN_ROUNDS and time.monotonic() > ends:
            return
        for row in rows:
            began = time.process_time()
            row.encode(pixels_B3HW)
            cost_ms = 1000 * (time.process_time() - began) / batch
            row.cost_ms[side, batch] = min(cost_ms, row.cost_ms.get((side, batch), math.inf))


def print_table(rows: Sequence[Row]) -> None:
    """Print the table in Markdown."""
    cells = list(rows[0].cost_ms)
    columns = [f"ms, {side} px, batch {batch}" for side, batch in cells]
    head = ["", "largest difference", "least cosine CLS", "least cosine patches", "masks"]
    print("| " + " | ".join([*head, *columns]) + " |")
    print("| --- " * (len(head) + len(columns)) + "|")
    for row in rows:
        costs = [f"{row.cost_ms[cell]:.1f}" for cell in cells]
        print("| " + " | ".join([row.name, *_exactness(row.entry), *costs]) + " |")


def _exactness(entry: ParityEntry | None) -> list[str]:
    if entry is None:
        return ["0 (the reference)", "1", "1", "100 %"]
    numbers = (entry.min_cosine_cls, entry.min_cosine_patches)
    cosines = ["-" if number is None else f"{number:.6f}" for number in numbers]
    agreement = entry.mask_agreement
    masks = "-" if agreement is None else f"{int(1e4 * agreement) / 100:.2f} %"
    return [f"{entry.max_abs_diff:.1e}", *cosines, masks if entry.passed else f"{masks}, fails"]


def print_default(package: ModelPackage, rows: Sequence[Row]) -> None:
    """Compare the service's default with ONNX Runtime in float32."""
    choice = choose_runtime(package, RuntimeRequest(device="cpu"))
    by_name = {row.name: row for row in rows}
    chosen = by_name[f"{choice.runtime} {choice.precision}"]
    plain = by_name["onnx fp32"]
    ratios = ", ".join(
        f"{plain.cost_ms[cell] / chosen.cost_ms[cell]:.2f} at {cell[0]} px and batch {cell[1]}"
        for cell in plain.cost_ms
    )
    print(f"default: {choice.reason}")
    print(f"ratio: onnx fp32 takes this many times the CPU time of {chosen.name}: {ratios}")


def measure_package(package: ModelPackage, limit_s: float) -> None:
    """Compare, time and print."""
    import torch  # noqa: PLC0415 - as above

    from model.encoder import load_encoder  # noqa: PLC0415

    torch.set_num_threads(1)
    threadpool_limits(1, user_api="blas")
    encoder = load_encoder(package.path)
    with ExitStack() as stack:
        rows = open_rows(package, encoder, stack)
        for side in SIDES:
            for batch in BATCHES:
                time_rows(rows, side, batch, limit_s=limit_s)
        hardware = this_hardware()
        print(
            f"\n{package.manifest.name}, {hardware.cpu_name} "
            f"({', '.join(sorted(hardware.cpu_features)) or 'no bf16, no int8'}), "
            f"one thread, CPU time an image, Python {platform.python_version()}, "
            f"torch {torch.__version__}"
        )
        print_table(rows)
        print_default(package, rows)


def main() -> None:
    """Measure one model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="bundled-student", help="bundled, or a folder")
    parser.add_argument("--cell-limit-s", type=float, default=60.0, help="for each size and batch")
    options = parser.parse_args()
    measure_package(open_package(options.model), options.cell_limit_s)


if __name__ == "__main__":
    main()
