"""`python -m training export`: write a model package from a checkpoint."""

import argparse
from pathlib import Path
from typing import get_args

from model.graphs import USUAL_PRECISIONS, Precision
from training.export.package import export_package


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="folder written by `evaluate --output`"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the package")
    parser.add_argument(
        "--graphs-only",
        action="store_true",
        help="leave the weights for torch out of the package",
    )
    parser.add_argument("--name", required=True, help="model name in requests")
    parser.add_argument(
        "--precision",
        action="append",
        default=[],
        choices=get_args(Precision),
        help="additional graphs, next to fp32; may be repeated. Default: fp16, for GPUs, which is "
        "left out if it differs too much",
    )


def run(options: argparse.Namespace) -> None:
    """Export; fails if a graph differs from torch."""
    package = export_package(
        options.checkpoint,
        options.output,
        name=options.name,
        is_graphs_only=options.graphs_only,
        precisions=options.precision or USUAL_PRECISIONS,
        may_fail=() if options.precision else USUAL_PRECISIONS,
    )
    print(f"{package.manifest.name} is ready in {package.path}")
