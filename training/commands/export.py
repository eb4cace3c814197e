"""`python -m training export`: write a model package from a checkpoint."""

import argparse
from pathlib import Path

from training.export.package import export_package

HELP = "Write a model package from a checkpoint."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="what `evaluate --output` has written"
    )
    parser.add_argument("--output", type=Path, required=True, help="the package's folder")
    parser.add_argument("--name", required=True, help="what requests call the model")


def run(options: argparse.Namespace) -> None:
    """Export, which refuses a graph that differs from torch."""
    package = export_package(options.checkpoint, options.output, name=options.name)
    print(f"{package.manifest.name} is ready in {package.path}")
