"""`python -m training data`: fetch the art and render the sprite bank."""

import argparse
from pathlib import Path

from training.data.folder import DataFolder, fetch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    parser.add_argument(
        "--folder", type=Path, default=Path("data"), help="the data folder (default data)"
    )
    parser.add_argument(
        "--with-stamps", action="store_true", help="also fetch the GPL photo stamps (evaluation)"
    )


def run(options: argparse.Namespace) -> None:
    """Fetch and render, and print the number of drawings."""
    fetch(options.folder, with_stamps=options.with_stamps)
    sprites = len(DataFolder(path=options.folder).bank().rgba_MSS4)
    print(f"{sprites} drawings are ready in {options.folder}")
