"""`python -m service`: read the settings, run the server."""

import os
import sys

from pydantic import ValidationError

from service.grpc.receiving import max_caller_bytes
from service.server import main
from service.settings import describe_settings, load_settings


def run() -> int:
    """Run the server; returns the exit status, which is 2 for invalid settings."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["serve"]:  # SageMaker starts every container with this argument
        del arguments[0]
    try:
        settings = load_settings(arguments, os.environ)
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
