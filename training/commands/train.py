"""`python -m training RECIPE`: train by a recipe, or go on where an earlier call was stopped."""

import argparse
from collections.abc import Callable

from training.config import TrainingConfig
from training.overrides import apply_overrides
from training.recipes import bundled, first_light
from training.recipes.scale import SCALE_RECIPES
from training.run import run as train

RECIPES: dict[str, Callable[[], TrainingConfig]] = {
    "teacher": first_light.teacher,
    "first-student": first_light.first_student,
    "student": bundled.student,
    "debug": first_light.debug,
    **SCALE_RECIPES,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of every recipe's job."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="change one setting of the recipe, such as optim.muon_lr=2e-3",
    )


def run(options: argparse.Namespace) -> None:
    """Train by the recipe that the job is named after."""
    folder = train(apply_overrides(RECIPES[options.job](), options.overrides))
    print(f"The model is in {folder}")
