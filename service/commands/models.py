"""`tipserve models`: list the models that can be used."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from service.commands.program import DONE, add_engine_options, new_parser, opened_engine


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit status.

    Raises:
        EngineError: The server does not answer, or the model cannot be loaded.
        SystemExit: The command line is wrong, or asks for help.
    """
    parser = new_parser(
        "models",
        "List the models of a server, or describe the model that would be loaded here.",
        ("", "--url http://localhost:8000", "--url grpc://localhost:8001 --json"),
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_engine_options(parser)
    options = parser.parse_args(list(arguments))
    with opened_engine(options) as engine:
        models = engine.models()
    if options.json:
        print(json.dumps([asdict(model) for model in models], indent=2))
        return DONE
    for model in models:
        print(
            f"{model.name}: {model.variant}, {model.embed_dim} dimensions, {model.native_size} px, "
            f"{', '.join(model.outputs)}; {model.runtime} {model.precision} on {model.device}"
        )
    return DONE
