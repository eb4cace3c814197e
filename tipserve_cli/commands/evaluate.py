"""`tipserve evaluate`: score a model on labelled images, and write a report."""

from typing import Annotated

from cyclopts import Parameter

from tipserve_cli.evaluation.options import EvaluateOptions
from tipserve_cli.model_options import Model, ModelOptions, as_help


@as_help
def run(
    *,
    options: Annotated[EvaluateOptions, Parameter(name="*")] = EvaluateOptions(),
    model: Model = ModelOptions(),
) -> int:
    """Run the command; returns the exit status."""
    from tipserve_cli.evaluation.scoring import evaluate  # noqa: PLC0415 - help does not need it

    return evaluate(options, model)
