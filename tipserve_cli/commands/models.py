"""`tipserve models`: list the models that can be used."""

import json

from model.graphs import DENSE_TASKS
from tipserve_cli.engine import describe
from tipserve_cli.model_options import AsJson, Model, ModelOptions, as_help, opened_engine
from tipserve_cli.program import DONE


@as_help
def run(*, as_json: AsJson = False, model: Model = ModelOptions()) -> int:
    """Run the command; returns the exit status.

    Args:
        as_json: Print JSON.
        model: Here, or on a server.
    """
    with opened_engine(model, heads=DENSE_TASKS) as engine:
        models = engine.client.models()
    if as_json:
        print(json.dumps([describe(one) for one in models], indent=2))
        return DONE
    for one in models:
        print(
            f"{one.name}: {one.variant}, {one.embed_dim} dimensions, {one.native_size} px, "
            f"{', '.join(one.outputs)}; {one.runtime} {one.precision} on {one.device}"
        )
    return DONE
