"""`python -m training photographs`: build the encoder of pretrained networks for photographs."""

import argparse
from pathlib import Path

from training.data.folder import DataFolder
from training.photographs.job import PhotographsJob


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    parser.add_argument(
        "--data", type=Path, default=Path("data"), help="the data job's folder (default data)"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("runs/photographs"),
        help="folder of cells and of the checkpoint (default runs/photographs)",
    )
    parser.add_argument("--passes", type=int, default=8, help="views of each drawing (default 8)")
    parser.add_argument(
        "--tail-parts",
        type=int,
        default=9,
        help="parts of 927 scenes that the trunk's last blocks learn from; 0: none (default 9)",
    )
    parser.add_argument(
        "--scenes",
        type=int,
        default=500,
        help="scenes per test set; 0 scores nothing (default 500)",
    )
    parser.add_argument(
        "--card",
        type=Path,
        default=Path("training/cards/photographs.md"),
        help="the model card's text (default training/cards/photographs.md)",
    )


def run(options: argparse.Namespace) -> None:
    """Build, score and write the checkpoint."""
    if options.passes < 1:
        raise ValueError(f"--passes must be at least 1, not {options.passes}")
    if options.tail_parts < 0:
        raise ValueError(f"--tail-parts must be at least 0, not {options.tail_parts}")
    job = PhotographsJob(
        data=DataFolder(path=options.data),
        folder=options.folder,
        passes=options.passes,
        tail_parts=options.tail_parts,
        num_scenes=options.scenes,
        card=options.card,
    )
    print(f"The checkpoint is in {job.run()}; `python -m training export` makes a package of it")
