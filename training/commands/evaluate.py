"""`python -m training evaluate`: score a student and write a checkpoint for export."""

import argparse
from pathlib import Path

from training.data.folder import DataFolder
from training.publish import publish

HELP = "Score a student and write a checkpoint for export."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    parser.add_argument("run", type=Path)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--card", type=Path, default=Path("training/cards/first-student.md"))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=500)


def run(options: argparse.Namespace) -> None:
    """Evaluate, write the checkpoint and print every score."""
    entries = publish(
        options.run,
        teacher=options.teacher,
        data=DataFolder(path=options.data),
        card=options.card,
        output=options.output,
        num_scenes=options.scenes,
    )
    for entry in entries:
        interval = f"[{entry.low:.2f}, {entry.high:.2f}]"
        print(f"{entry.split} | {entry.row} | {entry.metric} | {entry.value:.2f} {interval}")
