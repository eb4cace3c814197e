"""`python -m training evaluate`: score a student, and optionally write a checkpoint for export."""

import argparse
from pathlib import Path

from model.manifest import ScoreEntry
from training.data.folder import DataFolder
from training.evaluate.report import evaluate
from training.scored_checkpoint import ScoredRuns, write_scored_checkpoint

_CARDS = Path("training/cards")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    parser.add_argument("run", type=Path, help="folder of a run, or of a model with its tokenizer")
    parser.add_argument(
        "--also",
        type=Path,
        nargs="+",
        default=[],
        metavar="RUN",
        help="further runs of the same recipe with other seeds",
    )
    parser.add_argument("--teacher", type=Path, help="folder of its teacher, to compare with")
    parser.add_argument(
        "--served",
        type=Path,
        metavar="PACKAGE",
        help="the package that it would replace: adds its rows and the differences, for `gate`",
    )
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument(
        "--output", type=Path, help="folder for the checkpoint; without it, only print the scores"
    )
    parser.add_argument(
        "--card",
        type=Path,
        help="model card of the checkpoint (default training/cards/NAME.md of the run's name)",
    )
    parser.add_argument("--scenes", type=int, default=500, help="scenes per test set (default 500)")


def run(options: argparse.Namespace) -> None:
    """Print all scores, and write a checkpoint with --output."""
    data = DataFolder(path=options.data)
    runs = ScoredRuns(
        student=options.run,
        teacher=options.teacher,
        further=options.also,
        served=options.served,
    )
    if options.output is None:
        _, entries = evaluate(runs.rows(), data, num_scenes=options.scenes)
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
