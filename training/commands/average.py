"""`python -m training average`: the weighted mean of two models of one size."""

import argparse
from pathlib import Path

from training.average import average_models

HELP = (
    "Average the weights of two models, the second of which was trained from the first; the mean "
    "often knows what both know. A run starts from it by --set start=FOLDER."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    parser.add_argument("first", type=Path, help="folder of a run or of a model")
    parser.add_argument("second", type=Path, help="likewise; with the same tokenizer")
    parser.add_argument(
        "--share", type=float, default=0.5, help="of the second, 0 to 1 (default 0.5)"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the mean")


def run(options: argparse.Namespace) -> None:
    """Average."""
    average_models(options.first, options.second, share=options.share, output=options.output)
    print(f"the mean is in {options.output}")
