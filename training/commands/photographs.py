"""`python -m training photographs`: build the encoder of pretrained networks for photographs."""

from training.photographs.job import PhotographsJob as Options


def run(options: Options) -> None:
    """Build, score and write the checkpoint."""
    print(f"The checkpoint is in {options.run()}; `python -m training export` packages it")
