"""`python -m training evaluate`: score a student, and optionally write a checkpoint for export."""

from pathlib import Path

from pydantic.dataclasses import dataclass

from model.manifest import ScoreEntry
from training.data.folder import DataFolder
from training.evaluate.report import evaluate
from training.options import argument, option
from training.scored_checkpoint import ScoredRuns, write_scored_checkpoint

_CARDS = Path("training/cards")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Of the job."""

    run: Path = argument("folder of a run, or of a model with its tokenizer")
    also: tuple[Path, ...] = option("further runs of the same recipe with other seeds", ())
    teacher: Path | None = option("folder of its teacher, to compare with", None)
    served: Path | None = option(
        "the package that it would replace: adds its rows and the differences, for `gate`", None
    )
    data: Path = option("the data folder", Path("data"))
    output: Path | None = option("folder for the checkpoint; without it, only print scores", None)
    card: Path | None = option("its model card (default training/cards/NAME.md of the run)", None)
    scenes: int = option("scenes per test set", 500)


def run(options: Options) -> None:
    """Print all scores, and write a checkpoint with --output."""
    data = DataFolder(path=options.data)
    runs = ScoredRuns(
        student=options.run, teacher=options.teacher, further=options.also, served=options.served
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
