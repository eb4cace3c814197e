"""Throughput, latency, utilisation and serving efficiency on one GPU, per library.

`python -m benchmarks.gpu [--parts gemm,encoders,serving] [--variants b14,l14,so400m14,g14]
[--sides 224,448] [--batches 1,8,64] [--contestants tensorrt,torch-compile,torch-eager,onnx]
[--precisions bf16] [--work FOLDER] [--json FILE]`. Models have random weights and are exported into
FOLDER first, which takes minutes each. Unsupported combinations are noted and skipped. `--cpu-tiny`
runs all parts on the CPU with a tiny model, as a test of the script.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.on_gpu import encoders, serving
from benchmarks.on_gpu.arithmetic import gemm_peaks
from benchmarks.on_gpu.conditions import conditions, gpu_state
from benchmarks.on_gpu.contestants import CONTESTANTS, Setup
from benchmarks.on_gpu.place import NoGpu, Place, find_place
from benchmarks.on_gpu.report import table
from benchmarks.random_model import TINY, random_package
from model.graphs import Precision
from model.package import ModelPackage
from model.runtime.base import MissingRuntimeError

PARTS = ("gemm", "encoders", "serving")
VARIANTS = ("b14", "l14", "so400m14", "g14")
NO_GPU = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print.

    Returns:
        The exit status: 0; or 3 without a GPU, with a message on standard error.
    """
    options = _options(arguments)
    try:
        place = find_place(is_cpu_tiny=options.cpu_tiny)
    except (NoGpu, MissingRuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return NO_GPU
    report: dict[str, Any] = {"conditions": conditions(place)}
    print(json.dumps(report["conditions"], indent=1), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        work = options.work or Path(folder)
        for part, rows in _measure(options, place, work):
            report.setdefault(part, []).extend(rows)
            print(table(f"{part}, {place.title}", rows), flush=True)
            if options.json:
                # Written after each part, so that an abort loses at most one part.
                report["after"] = gpu_state() if place.is_gpu else {}
                options.json.write_text(json.dumps(report, indent=1), encoding="utf-8")
    return 0


def _measure(options: argparse.Namespace, place: Place, work: Path) -> Any:
    """Yield each part with its rows."""
    gemm: list[dict[str, Any]] = []
    if "gemm" in options.parts:
        gemm = gemm_peaks(place, options.seconds)
        yield "gemm", gemm
    if not {"encoders", "serving"} & set(options.parts):
        return
    for variant in options.variants:
        package = _package(work, variant, max(options.sides), options.precisions)
        setup = Setup(package=package, place=place, max_batch=max(options.batches), work=work)
        for side in options.sides:
            if "encoders" in options.parts:
                grid = encoders.Grid(
                    variant=variant,
                    side=side,
                    batches=options.batches,
                    names=options.contestants,
                    precisions=options.precisions,
                    seconds=options.seconds,
                )
                yield "encoders", list(encoders.measure(setup, grid, gemm))
            if "serving" in options.parts:
                yield (
                    "serving",
                    [
                        {"variant": variant}
                        | serving.measure(
                            setup, name, precision, side=side, seconds=options.seconds
                        )
                        for name in options.contestants
                        for precision in options.precisions
                    ],
                )


def _package(work: Path, variant: str, side: int, precisions: Sequence[Precision]) -> ModelPackage:
    """Create the package in all precisions, or in float32 if the others cannot be exported here."""
    try:
        return random_package(work, variant, side, precisions)
    except subprocess.CalledProcessError:
        print(f"{variant}: graphs in float32 only, for the reason above", file=sys.stderr)
        return random_package(work, variant, side)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    lists = {
        "parts": (PARTS, PARTS),
        "variants": (VARIANTS, VARIANTS),
        "contestants": (tuple(CONTESTANTS), tuple(CONTESTANTS)),
        "precisions": (("fp32", "fp16", "bf16"), ("bf16", "fp16")),
    }
    for name, (known, usual) in lists.items():
        kind = _one_of(known)
        parser.add_argument(f"--{name}", type=kind, default=list(usual), help=f"of {known}")
    parser.add_argument("--sides", type=_numbers, default=[224, 448], help="in pixels")
    parser.add_argument("--batches", type=_numbers, default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--seconds", type=float, default=3.0, help="for each number")
    parser.add_argument("--work", type=Path, help="folder for models and engines")
    parser.add_argument("--json", type=Path, help="JSON file, written after each part")
    parser.add_argument(
        "--cpu-tiny", action="store_true", help="tiny model on the CPU, to test the script"
    )
    options = parser.parse_args(arguments)
    if options.cpu_tiny:
        options.variants, options.sides, options.precisions = [TINY], [56], ["fp32"]
        options.batches = [1, 2]
    return options


def _one_of(known: Sequence[str]) -> Any:
    def names(text: str) -> list[str]:
        wanted = text.split(",")
        unknown = set(wanted) - set(known)
        if unknown:
            raise argparse.ArgumentTypeError(f"choose of {', '.join(known)}")
        return wanted

    return names


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
