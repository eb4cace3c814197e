"""`python -m training evaluate`: score a student, and write a checkpoint for export if asked."""

import argparse
from pathlib import Path

import torch

from model.manifest import ScoreEntry
from training.data.folder import DataFolder
from training.evaluate.encoder import find_model
from training.evaluate.quick import quick_scores, render_table
from training.scored_checkpoint import Runs, score, write_scored_checkpoint

HELP = "Score a student, and write a checkpoint for export; --quick for a few development numbers."

_CARDS = Path("training/cards")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    parser.add_argument("run", type=Path, help="a run's folder, or a model's with its tokenizer")
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
    parser.add_argument("--teacher", type=Path, help="its teacher's folder, for the rows beside it")
    parser.add_argument(
        "--served",
        type=Path,
        metavar="PACKAGE",
        help="the package in whose place it would come: rows beside it, and the difference to it, "
        "which `gate` judges",
    )
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument(
        "--output", type=Path, help="write the run's checkpoint here; without it, print the scores"
    )
    parser.add_argument(
        "--card",
        type=Path,
        help="the checkpoint's model card; default: training/cards/NAME.md, NAME being the run's",
    )
    parser.add_argument("--scenes", type=int, default=500, help="scenes a test set (default 500)")


def run(options: argparse.Namespace) -> None:
    """Print development numbers; or every score, and write a checkpoint where asked to."""
    data = DataFolder(path=options.data)
    if options.quick:
        torch.set_num_threads(1)
        models = [find_model(run) for run in (options.run, *options.also)]
        print(render_table(quick_scores(models, data)))
        return
    runs = Runs(
        student=options.run,
        teacher=options.teacher,
        further=options.also,
        served=options.served,
    )
    if options.output is None:
        _, entries = score(runs, data=data, num_scenes=options.scenes)
    else:
        card = options.card or _CARDS / f"{options.run.resolve().name}.md"
        entries = write_scored_checkpoint(
            runs, data=data, card=card, output=options.output, num_scenes=options.scenes
        )
    for entry in entries:
        print(_line(entry))


def _line(entry: ScoreEntry) -> str:
    interval = "" if entry.low is None else f" [{entry.low:.2f}, {entry.high:.2f}]"
    title = f"{entry.task} | {entry.split} | {entry.row} | {entry.metric}"
    return f"{title} | {entry.value:.2f}{interval} | n {entry.count}"
