"""`python -m training JOB`: fetch data, train by a recipe, evaluate a run, export a package."""

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from training.config import TrainingConfig, apply_overrides
from training.data.fetch import fetch
from training.data.folder import DataFolder
from training.export.package import export_package
from training.publish import publish
from training.recipes import first_light
from training.run import run

RECIPES: dict[str, Callable[[], TrainingConfig]] = {
    "teacher": first_light.teacher,
    "student": first_light.student,
    "debug": first_light.debug,
}


def _train(options: argparse.Namespace) -> None:
    folder = run(apply_overrides(RECIPES[options.job](), options.overrides))
    print(f"The model is in {folder}")


def _data(options: argparse.Namespace) -> None:
    fetch(options.folder, with_stamps=options.with_stamps)
    sprites = len(DataFolder(path=options.folder).bank().rgba_MSS4)
    print(f"{sprites} drawings are ready in {options.folder}")


def _evaluate(options: argparse.Namespace) -> None:
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


def _export(options: argparse.Namespace) -> None:
    package = export_package(options.checkpoint, options.output, name=options.name)
    print(f"{package.manifest.name} is ready in {package.path}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    jobs = parser.add_subparsers(dest="job", required=True)
    for name, recipe in RECIPES.items():
        job = jobs.add_parser(name, help=recipe.__doc__)
        job.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides"
        )
        job.set_defaults(do=_train)
    data = jobs.add_parser("data", help="Fetch the art and render the sprite bank.")
    data.add_argument("--folder", type=Path, default=Path("data"))
    data.add_argument(
        "--with-stamps", action="store_true", help="also fetch the GPL photo stamps, to evaluate on"
    )
    data.set_defaults(do=_data)
    job = jobs.add_parser("evaluate", help="Score a student and write a checkpoint for export.")
    job.add_argument("run", type=Path)
    job.add_argument("--teacher", type=Path, required=True)
    job.add_argument("--data", type=Path, default=Path("data"))
    job.add_argument("--card", type=Path, default=Path("training/cards/first-student.md"))
    job.add_argument("--output", type=Path, required=True)
    job.add_argument("--scenes", type=int, default=500)
    job.set_defaults(do=_evaluate)
    job = jobs.add_parser("export", help="Write a model package from a checkpoint.")
    job.add_argument("--checkpoint", type=Path, required=True)
    job.add_argument("--output", type=Path, required=True)
    job.add_argument("--name", required=True)
    job.set_defaults(do=_export)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a job; returns the exit status: 0, or 2 for a mistake the message explains."""
    options = _parser().parse_args(arguments)
    try:
        options.do(options)
    except (ValueError, FileNotFoundError, subprocess.SubprocessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
