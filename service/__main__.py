"""`python -m service`: read the settings, run the server."""

import os
import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    # `python -m` searches the working folder first, where a user's `model.py` would hide ours.
    own_folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if not os.path.samefile(sys.path[0], own_folder):
        del sys.path[0]

from pydantic import ValidationError

from service.settings import describe_settings, load_settings
from service.workers.place import WorkerPlace, share_of


def run() -> int:
    """Run the server; returns the exit status, which is 2 for invalid settings."""
    arguments, program, place = sys.argv[1:], "python -m service", None
    if arguments[:1] == ["serve"]:  # from `tipserve`, and SageMaker starts every container with it
        del arguments[0]
        program = "tipserve serve"
    try:
        if arguments[:1] == ["worker"]:  # from `service.workers.supervisor`
            place = WorkerPlace.model_validate_json("".join(arguments[1:2]))
            del arguments[:2]
        settings = load_settings(arguments, os.environ, program)
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            name = ".".join(map(str, problem["loc"])) or "settings"
            print(f"{name}: {problem['msg']}", file=sys.stderr)
        return 2
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if settings.workers > 1 and place is None and not settings.show_config:
        from service.workers.supervisor import supervise  # noqa: PLC0415

        return supervise(settings, arguments)
    # Only here: the supervisor needs none of it, and so 58 MiB of memory instead of 99.
    from service.server import main, max_caller_bytes  # noqa: PLC0415

    if settings.show_config:
        total = settings.workers
        shares = [share_of(settings, n, total) for n in range(total)] if total > 1 else [settings]
        computed = {"max_caller_bytes": sum(map(max_caller_bytes, shares))}
        print(describe_settings(settings, arguments, os.environ, computed))
        return 0
    return main(settings, place)


if __name__ == "__main__":
    sys.exit(run())
