"""`python -m training JOB`: train by a recipe, or run one of the jobs in `training/commands/`."""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, Protocol

from transformers.utils.logging import disable_progress_bar

from training.commands import (
    caption,
    cost,
    data,
    distill,
    evaluate,
    export,
    gate,
    pretrain,
    reproduce,
    shards,
    train,
)
from training.commands.train import RECIPES
from training.evaluate.gate import Refused
from training.preemption import Stopped

# Exit statuses besides 0: a mistake that the message explains; a student that the gate refuses; and
# a stop that a signal asked for, as the shell counts SIGTERM, so that nobody takes it for the end.
MISTAKE, REFUSED, STOPPED = 2, 3, 143


class Command(Protocol):
    """A module of `training/commands/`: one job."""

    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the job's options."""

    def run(self, options: argparse.Namespace) -> None:
        """Do the job."""


COMMANDS: dict[str, Command] = {
    "caption": caption,
    "cost": cost,
    "data": data,
    "distill": distill,
    "evaluate": evaluate,
    "export": export,
    "gate": gate,
    "pretrain": pretrain,
    "reproduce": reproduce,
    "shards": shards,
}


class _ExactParser(argparse.ArgumentParser):
    """Takes options by their whole names, and so do the parsers of jobs that it makes."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **settings})


def build_parser() -> argparse.ArgumentParser:
    """The command line of every job."""
    parser = _ExactParser(prog="python -m training", description=__doc__)
    jobs = parser.add_subparsers(dest="job", required=True)
    for name, recipe in RECIPES.items():
        job = jobs.add_parser(name, help=recipe.__doc__, description=_recipe_help(recipe.__doc__))
        train.add_arguments(job)
        job.set_defaults(do=train.run)
    for name, command in COMMANDS.items():
        job = jobs.add_parser(name, help=command.HELP, description=command.HELP)
        command.add_arguments(job)
        job.set_defaults(do=command.run)
    return parser


def _recipe_help(sentence: str | None) -> str:
    return f"{sentence} Stopped, it goes on when the same command is given again."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a job.

    Returns:
        The exit status: 0, or one of those above.
    """
    options = build_parser().parse_args(arguments)
    disable_progress_bar()  # of reading and writing weights, which small models do in no time
    try:
        options.do(options)
    except Stopped as stopped:
        print(stopped, flush=True)
        return STOPPED
    except Refused as refused:
        print(f"refused: {refused}", file=sys.stderr)
        return REFUSED
    except (ValueError, FileNotFoundError, FloatingPointError, subprocess.SubprocessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE
    return 0


if __name__ == "__main__":
    sys.exit(main())
