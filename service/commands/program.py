"""The console script `tipserve`: finds the command, runs it, and turns errors into sentences."""

from service import blas_threads  # noqa: F401, I001 - before NumPy is there

import importlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from types import FrameType
from typing import Final

from service.commands.exit_status import (
    DONE,
    FAILED,
    INTERRUPTED,
    MEANINGS,
    TERMINATED,
    WRONG_USAGE,
)
from service.engines.engine import UserError

# What other programs of this distribution do already.
PROGRAMS: Final = {
    "serve": ("service", ()),
    "convert": ("model", ("convert",)),
    "show": ("model", ("show",)),
}
COMMANDS: Final = ("embed", "segment", "models")
PACKAGES: Final = {"pyarrow": "cli", "rich": "cli", "ray": "bulk"}
HELP: Final = f"""usage: tipserve COMMAND ...

Embeds and segments images, by a model in this process or by a server.

commands:
  embed     embeddings of files, folders, Parquet rows or WebDataset shards, as Parquet
  segment   the mask of an image, by the names of what is in it
  models    what can be asked
  serve     run the server: the same as python -m service
  convert   released weights to a model package: python -m model convert
  show      verify a package and say what it is: python -m model show

examples:
  tipserve segment photo.jpg --classes "dog, grass" -o mask.png
  tipserve embed photos/ -o photos.parquet
  tipserve embed photos/ -o photos.parquet --url http://localhost:8000
  tipserve serve --model google/tipsv2-b14

`tipserve COMMAND --help` has the options of each, `tipserve --version` says which one this is.
{MEANINGS}
"""

Execute = Callable[[str, list[str]], object]


class Ended(BaseException):
    """A signal asks the command to end."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def main(arguments: Sequence[str] | None = None, execute: Execute = os.execv) -> int:
    """Run a command; returns the process's exit status.

    Args:
        arguments: The command line without the program's name; None is this process's.
        execute: Becomes another program.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in {"-h", "--help", "help"}:
        print(HELP, end="", file=sys.stdout if given else sys.stderr)
        return DONE if given else WRONG_USAGE
    if given[0] == "--version":
        print(f"tipserve {_version()}")
        return DONE
    command, rest = given[0], given[1:]
    if command in PROGRAMS:
        room, before = PROGRAMS[command]
        safe_path = ["-P"] if sys.flags.safe_path else []
        execute(sys.executable, [sys.executable, *safe_path, "-m", room, *before, *rest])
        return DONE
    if command not in COMMANDS:
        known = ", ".join([*COMMANDS, *PROGRAMS])
        print(f"tipserve: there is no command {command!r}; there is {known}.", file=sys.stderr)
        return WRONG_USAGE
    return _run(command, rest)


def _run(command: str, arguments: Sequence[str]) -> int:
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    before = {number: signal.signal(number, _end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        # Imported here, so that what one command needs is not missed by another.
        run: Callable[[Sequence[str]], int] = importlib.import_module(
            f"service.commands.{command}"
        ).run
        return run(arguments)
    except Ended as ended:
        more = "; the same command goes on from here" if command == "embed" else ""
        print(f"tipserve {command}: ended{more}.", file=sys.stderr)
        return ended.status
    except ModuleNotFoundError as error:
        extra = PACKAGES.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        return _fail(command, f"{error.name} is missing: pip install 'tipserve[{extra}]'.")
    except UserError as error:
        return _fail(command, str(error))
    except OSError as error:
        return _fail(command, _sentence(error))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _fail(command: str, message: str) -> int:
    print(f"tipserve {command}: {message}", file=sys.stderr)
    return FAILED


def _sentence(error: OSError) -> str:
    """What the system says; pyarrow's errors name no file, and some have no number either."""
    told = error.strerror or str(error)
    return f"{told}." if error.filename is None else f"{error.filename}: {told}."


def _version() -> str:
    try:
        return version("tipserve")
    except PackageNotFoundError:
        return "unknown"


def _end(number: int, frame: FrameType | None) -> None:
    del frame
    raise Ended(INTERRUPTED if number == signal.SIGINT else TERMINATED)
