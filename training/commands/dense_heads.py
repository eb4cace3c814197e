"""`python -m training dense-heads`: depth and normals for a package, from renders of furniture."""

import argparse
from pathlib import Path

from model.package import open_package
from training.data.folder import DataFolder
from training.dense.head import HEAD_KINDS
from training.dense.job import DenseHeadsJob

HELP = (
    "Train heads for depth and normals on a package's frozen patches, with rendered rooms, and "
    "write the package with them."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    parser.add_argument(
        "--model", default="bundled", help="a package, or bundled (default) or bundled-student"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the new package")
    parser.add_argument(
        "--data", type=Path, default=Path("data"), help="the data job's folder (default data)"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("runs/dense-heads"),
        help="folder of renders and embeddings (default runs/dense-heads)",
    )
    parser.add_argument("--kind", choices=HEAD_KINDS, default="dpt", help="of heads (default dpt)")
    parser.add_argument("--renders", type=int, default=300, help="rooms to train on (default 300)")
    parser.add_argument(
        "--tests", type=int, default=150, help="rooms of the held-out catalogue (default 150)"
    )
    parser.add_argument("--steps", type=int, default=400, help="of each fit (default 400)")
    parser.add_argument(
        "--card",
        type=Path,
        default=Path("training/cards/dense-heads.md"),
        help="the heads' part of the model card (default training/cards/dense-heads.md)",
    )


def run(options: argparse.Namespace) -> None:
    """Render, fit, score, and write the package."""
    if min(options.renders, options.tests, options.steps) < 1:
        raise ValueError("--renders, --tests and --steps must be at least 1")
    job = DenseHeadsJob(
        package=open_package(options.model),
        data=DataFolder(path=options.data),
        folder=options.folder,
        kind=options.kind,
        num_renders=options.renders,
        num_tests=options.tests,
        num_steps=options.steps,
        card=options.card,
    )
    package = job.run(options.output)
    print(f"{package.manifest.name} with depth and normals is ready in {package.path}")
