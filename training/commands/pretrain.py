"""`python -m training pretrain`: a folder of captioned images makes a teacher."""

import argparse
from dataclasses import replace

from training.commands.folder_options import add_folder_arguments, folder_run
from training.overrides import apply_overrides
from training.recipes.from_folder import pretrain_folder
from training.run import run as train

HELP = "Pretrain a model on a folder of images with captions."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    add_folder_arguments(parser, size="model")


def run(options: argparse.Namespace) -> None:
    """Look at the folder, say what is used, and train."""
    config = pretrain_folder(folder_run(options, kind="pretrained"))
    folder = train(apply_overrides(replace(config, runs=options.runs), options.overrides))
    print(
        f"The model is in {folder}; its run's folder can be a teacher's: --teacher {folder.parent}"
    )
