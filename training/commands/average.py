"""`python -m training average`: the mean of models of one size."""

import argparse
from pathlib import Path

from training.average import average_models


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    parser.add_argument(
        "models",
        type=Path,
        nargs="+",
        help="two folders or more, with one tokenizer: of runs, of models, or of checkpoints "
        "(RUN/checkpoints/step-N)",
    )
    parser.add_argument(
        "--share", type=float, help="of the second of two models, 0 to 1 (default: all equally)"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the mean")


def run(options: argparse.Namespace) -> None:
    """Average."""
    average_models(options.models, share=options.share, output=options.output)
    print(f"the mean is in {options.output}")
