"""`python -m service`: read the settings, run the server."""

import os
import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    # `python -m` searches the working folder first, where a user's `model.py` would hide ours.
    own_folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if not os.path.samefile(sys.path[0], own_folder):
        del sys.path[0]

from pydantic import ValidationError

from service.grpc.receiving import max_caller_bytes
from service.server import main
from service.settings import describe_settings, load_settings


def run() -> int:
    """Run the server; returns the exit status, which is 2 for invalid settings."""
    arguments, program = sys.argv[1:], "python -m service"
    if arguments[:1] == ["serve"]:  # from `tipserve`, and SageMaker starts every container with it
        del arguments[0]
        program = "tipserve serve"
    try:
        settings = load_settings(arguments, os.environ, program)
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            name = ".".join(map(str, problem["loc"])) or "settings"
            print(f"{name}: {problem['msg']}", file=sys.stderr)
        return 2
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if settings.show_config:
        computed = {"max_caller_bytes": max_caller_bytes(settings)}
        print(describe_settings(settings, arguments, os.environ, computed))
        return 0
    return main(settings)


if __name__ == "__main__":
    sys.exit(run())
