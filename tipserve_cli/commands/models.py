"""`tipserve models`: list the models that can be used."""

import json
from dataclasses import asdict
from typing import Annotated

from cyclopts import Parameter

from tipserve_cli.commands.model_options import Model, ModelOptions, opened_engine
from tipserve_cli.commands.program import DONE


def run(
    *,
    as_json: Annotated[
        bool, Parameter(name="--json", help="Print JSON.", show_default=False)
    ] = False,
    model: Model = ModelOptions(),
) -> int:
    """Run the command; returns the exit status.

    Raises:
        EngineError: The server does not answer, or the model cannot be loaded.
    """
    with opened_engine(model) as engine:
        models = engine.models()
    if as_json:
        print(json.dumps([asdict(one) for one in models], indent=2))
        return DONE
    for one in models:
        print(
            f"{one.name}: {one.variant}, {one.embed_dim} dimensions, {one.native_size} px, "
            f"{', '.join(one.outputs)}; {one.runtime} {one.precision} on {one.device}"
        )
    return DONE
