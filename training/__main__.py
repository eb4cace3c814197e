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
        from model.installation import install

        sys.exit(f"Training needs more packages. Run: {install('train')}")

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from pydantic import ValidationError

from model.scores.gate import Refused
from training.options import add_options
from training.preemption import Stopped
from training.settings import problems

# Exit statuses besides 0: an error that the message explains; a student that the gate refuses; and
# a stop by a signal, which has the status of SIGTERM in a shell, so that it is no success.
MISTAKE, REFUSED, STOPPED = 2, 3, 143


# The jobs, and what each is for. Their modules import torch or OpenCV, which takes seconds.
RECIPES: Final = {
    "teacher": "Pretrain a small teacher: two caption streams, and iBOT++ in the second half.",
    "first-student": "Distil the first teacher, contrast patches with names, end at a higher "
    "resolution.",
    "student": "Distil the first student's patches into a new tower, with an image backbone and "
    "titles.",
    "photo-student": "Distil the space of the encoder for photographs into the bundled student.",
    "debug": "Run both losses of the teacher for a minute, as a test.",
    "teacher-g14": "Pretrain g14 at 224 pixels.",
    "teacher-g14-high-res": "Continue teacher-g14 at 448 pixels.",
    "student-so400m14": "Distil g14 into so400m14 at 224 pixels.",
    "student-so400m14-high-res": "Continue student-so400m14 at 448 pixels.",
    "student-l14": "Distil g14 into l14 at 224 pixels.",
    "student-l14-high-res": "Continue student-l14 at 448 pixels.",
    "student-b14": "Distil g14 into b14 at 224 pixels.",
    "student-b14-high-res": "Continue student-b14 at 448 pixels.",
    "student-s14": "Distil g14 into s14 at 224 pixels.",
    "student-s14-high-res": "Continue student-s14 at 448 pixels.",
}
COMMANDS: Final = {
    "average": "Average the weights of models of one training: of a model and its start, or of "
    "checkpoints. The mean often knows what all know. A run starts from it by --set start=FOLDER.",
    "caption": "Caption the images of shards with PaliGemma or Gemini.",
    "cost": "Estimate operations, hours and memory of the recipes for real hardware; runs nothing.",
    "data": "Fetch the art and render the sprite bank.",
    "dense-heads": "Train heads for depth, normals or segmentation on a package's frozen patches, "
    "and write the package with them.",
    "distill": "Distil a teacher into a student on a folder of images, with or without captions.",
    "evaluate": "Score a student, and write a checkpoint for export.",
    "export": "Write a model package from a checkpoint.",
    "gate": "Check an evaluated checkpoint against rules; exits with status 3 if it fails one.",
    "head": "Fit a head to a few images with masks, or in folders by class; seconds on a CPU.",
    "photographs": "Build an encoder of EfficientNet-Lite0 and MiniLM, and its evaluation twin; "
    "resumes after a stop.",
    "pretrain": "Pretrain a model on a folder of images with captions.",
    "reproduce": "Measure the paper's effects in miniature, over several seeds; resumes after a "
    "stop.",
    "scenes": "Write composed test scenes with exact masks.",
    "shards": "Build, index or describe WebDataset shards of images and captions.",
}


class _ExactParser(argparse.ArgumentParser):
    """Accepts no abbreviated options; the parsers of jobs are of this class too."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **settings})


def _job(name: str) -> tuple[type[Any], Callable[[Any], None]]:
    """The options of a job, and its function."""
    if name in RECIPES or name in ("distill", "pretrain"):
        train = importlib.import_module("training.commands.train")
        if name in RECIPES:
            return train.RecipeOptions, partial(train.run_recipe, name)
        return getattr(train, f"{name.title()}Options"), getattr(train, f"run_{name}")
    module = importlib.import_module(f"training.commands.{name.replace('-', '_')}")
    return module.Options, module.run


def build_parser(chosen: str | None) -> argparse.ArgumentParser:
    """The command line of every job; only that of the chosen one has its options."""
    parser = _ExactParser(prog="python -m training", description=__doc__)
    jobs = parser.add_subparsers(dest="job", required=True)
    for name, text in (RECIPES | COMMANDS).items():
        resumes = " After a stop, the same command resumes the run." if name in RECIPES else ""
        job = jobs.add_parser(name, help=text, description=text + resumes)
        if name == chosen:  # only its libraries are loaded
            add_options(job, _job(name)[0])
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a job.

    Returns:
        The exit status: 0, or one of those above.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    chosen = arguments[0] if arguments else None
    if chosen in RECIPES | COMMANDS and os.environ.get("RANK", "0") == "0":
        print(f"training {chosen}: loading its libraries", file=sys.stderr, flush=True)
    options = vars(build_parser(chosen).parse_args(arguments))
    kind, run = _job(options.pop("job"))
    # Of reading and writing weights, which takes no time for small models.
    importlib.import_module("transformers.utils.logging").disable_progress_bar()
    try:
        run(kind(**options))
    except Stopped as stopped:
        print(stopped, flush=True)
        return STOPPED
    except Refused as refused:
        print(f"refused: {refused}", file=sys.stderr)
        return REFUSED
    except ValidationError as error:
        texts = (f"{name}: {text}" if name else text for name, text in problems(error))
        print(f"error: {'; '.join(texts)}", file=sys.stderr)
        return MISTAKE
    except (ValueError, FileNotFoundError, FloatingPointError, subprocess.SubprocessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE
    return 0


if __name__ == "__main__":
    sys.exit(main())
