"""`python -m training evaluate`: score a student and write a checkpoint for export."""

import argparse
from pathlib import Path

import torch

from model.manifest import ScoreEntry
from training.data.folder import DataFolder
from training.evaluate.quick import quick_scores, render_table
from training.methods.teacher import MODEL_FOLDER
from training.publish import Runs, publish

HELP = "Score a student and write a checkpoint for export; --quick for a few development numbers."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    parser.add_argument("run", type=Path)
    parser.add_argument(
        "--quick", action="store_true", help="print development numbers only; a run may still train"
    )
    parser.add_argument(
        "--also",
        type=Path,
        nargs="+",
        default=[],
        metavar="RUN",
        help="further runs of the same recipe with other seeds",
    )
    parser.add_argument("--teacher", type=Path, help="its teacher's run; needed without --quick")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--card", type=Path, default=Path("training/cards/first-student.md"))
    parser.add_argument("--output", type=Path, help="the checkpoint; needed without --quick")
    parser.add_argument("--scenes", type=int, default=500)


def run(options: argparse.Namespace) -> None:
    """Evaluate, write the checkpoint and print every score; or print development numbers.

    Raises:
        ValueError: A whole evaluation without a teacher or an output.
    """
    data = DataFolder(path=options.data)
    if options.quick:
        torch.set_num_threads(1)
        models = [run / MODEL_FOLDER for run in (options.run, *options.also)]
        print(render_table(quick_scores(models, data)))
        return
    if options.teacher is None or options.output is None:
        raise ValueError("a whole evaluation needs --teacher and --output; or ask for --quick")
    runs = Runs(student=options.run, teacher=options.teacher, further=options.also)
    for entry in publish(
        runs, data=data, card=options.card, output=options.output, num_scenes=options.scenes
    ):
        print(_line(entry))


def _line(entry: ScoreEntry) -> str:
    interval = "" if entry.low is None else f" [{entry.low:.2f}, {entry.high:.2f}]"
    title = f"{entry.task} | {entry.split} | {entry.row} | {entry.metric}"
    return f"{title} | {entry.value:.2f}{interval} | n {entry.count}"
