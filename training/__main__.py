"""`python -m training JOB`: train by a recipe, or run one of the jobs in `training/commands/`."""

import argparse
import importlib.util
import os
import subprocess
import sys

if __name__ == "__main__":
    # As in `service/__main__.py`: a user's `model.py` would hide ours.
    own_folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if not sys.flags.safe_path and not os.path.samefile(sys.path[0], own_folder):
        del sys.path[0]
    if importlib.util.find_spec("transformers") is None:
        sys.exit("Training needs more packages. Run: pip install 'tipserve[train]'")

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers.utils.logging import disable_progress_bar

from model.scores.gate import Refused
from training.commands import (
    average,
    caption,
    cost,
    data,
    dense_heads,
    evaluate,
    export,
    gate,
    head,
    photographs,
    reproduce,
    shards,
    train,
)
from training.commands.train import RECIPES
from training.preemption import Stopped

# Exit statuses besides 0: an error that the message explains; a student that the gate refuses; and
# a stop by a signal, which has the status of SIGTERM in a shell, so that it is no success.
MISTAKE, REFUSED, STOPPED = 2, 3, 143


@dataclass(frozen=True, slots=True)
class Job:
    """One job of the command line."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


COMMANDS: dict[str, Job] = {
    "average": Job(average.HELP, average.add_arguments, average.run),
    "caption": Job(caption.HELP, caption.add_arguments, caption.run),
    "cost": Job(cost.HELP, cost.add_arguments, cost.run),
    "data": Job(data.HELP, data.add_arguments, data.run),
    "dense-heads": Job(dense_heads.HELP, dense_heads.add_arguments, dense_heads.run),
    "distill": Job(train.DISTILL_HELP, train.add_distill_arguments, train.run_distill),
    "evaluate": Job(evaluate.HELP, evaluate.add_arguments, evaluate.run),
    "export": Job(export.HELP, export.add_arguments, export.run),
    "gate": Job(gate.HELP, gate.add_arguments, gate.run),
    "head": Job(head.HELP, head.add_arguments, head.run),
    "photographs": Job(photographs.HELP, photographs.add_arguments, photographs.run),
    "pretrain": Job(train.PRETRAIN_HELP, train.add_pretrain_arguments, train.run_pretrain),
    "reproduce": Job(reproduce.HELP, reproduce.add_arguments, reproduce.run),
    "shards": Job(shards.HELP, shards.add_arguments, shards.run),
}


class _ExactParser(argparse.ArgumentParser):
    """Accepts no abbreviated options; the parsers of jobs are of this class too."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **settings})


def build_parser() -> argparse.ArgumentParser:
    """The command line of every job."""
    parser = _ExactParser(prog="python -m training", description=__doc__)
    jobs = parser.add_subparsers(dest="job", required=True)
    for name, recipe in RECIPES.items():
        job = jobs.add_parser(name, help=recipe.__doc__, description=_recipe_help(recipe.__doc__))
        train.add_recipe_arguments(job)
        job.set_defaults(do=train.run_recipe)
    for name, command in COMMANDS.items():
        job = jobs.add_parser(name, help=command.help, description=command.help)
        command.add_arguments(job)
        job.set_defaults(do=command.run)
    return parser


def _recipe_help(sentence: str | None) -> str:
    return f"{sentence} After a stop, the same command resumes the run."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a job.

    Returns:
        The exit status: 0, or one of those above.
    """
    options = build_parser().parse_args(arguments)
    disable_progress_bar()  # of reading and writing weights, which takes no time for small models
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
