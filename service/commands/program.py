"""The console script `tipserve`: parse arguments, run a command, report errors."""

import argparse
import importlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Final

from service.engines import choice
from service.engines.choice import KEY_VARIABLE, SCHEMES, URL_VARIABLE
from service.engines.engine import Engine, EngineError, UserError

# With what status a command ends.
#
# 0    everything was done
# 1    it could not be done; a sentence on standard error says what to change
# 2    the command line is wrong
# 3    done, but some items were bad; the output names them
# 130  interrupted; the same command goes on where it stopped (143 where SIGTERM ended it)

DONE: Final = 0
FAILED: Final = 1
WRONG_USAGE: Final = 2
DONE_WITHOUT_SOME: Final = 3
INTERRUPTED: Final = 130
TERMINATED: Final = 143
MEANINGS: Final = (
    "exit status: 0 done; 1 it could not be done, and a sentence says why; 2 a wrong command line; "
    "3 done, but for items that could not be used; 130 or 143 interrupted"
)


# Options that several commands have, and what they make of them.

# Of the service's settings, those that matter where nothing is served; variables set the others.
LOADING: Final = ("runtime", "precision", "device", "cache")


def new_parser(command: str, description: str, examples: Sequence[str]) -> argparse.ArgumentParser:
    """A parser whose help ends with examples and exit statuses."""
    lines = "\n".join(f"  tipserve {command} {example}" for example in examples)
    return argparse.ArgumentParser(
        prog=f"tipserve {command}",
        description=description,
        epilog=f"examples:\n{lines}\n\n{MEANINGS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Where it is computed."""
    group = parser.add_argument_group("where it is computed: in this process, or by a server")
    group.add_argument(
        "--model",
        help="bundled (the default), a package's folder, a checkpoint or a hub id, as `serve` "
        "takes them; with --url the name of a served model",
    )
    group.add_argument(
        "--url",
        default=os.environ.get(URL_VARIABLE) or None,
        help=f"a server: an address with {SCHEMES}; also the variable {URL_VARIABLE}",
    )
    group.add_argument(
        "--api-key-file",
        type=Path,
        help=f"file with the server's key; also the variable {KEY_VARIABLE}",
    )
    for name in LOADING:
        group.add_argument(
            f"--{name}", help=f"as `serve --{name}`; without --url; also TIPSERVE_{name.upper()}"
        )


def loading_flags(options: argparse.Namespace) -> tuple[str, ...]:
    """The service's own flags, for a model in this process."""
    names = ("model", *LOADING)
    given = {name: getattr(options, name) for name in names}
    return tuple(f"--{name}={value}" for name, value in given.items() if value is not None)


@contextmanager
def opened_engine(
    options: argparse.Namespace, load: Callable[[Sequence[str]], Engine] = choice.load
) -> Iterator[Engine]:
    """What the options ask for, closed at the end.

    Raises:
        EngineError: It cannot be had.
    """
    if options.url is None:
        engine = load(loading_flags(options))
    else:
        useless = [name for name in LOADING if getattr(options, name) is not None]
        if useless:
            raise EngineError(f"--{useless[0]} is the server's to choose where --url is given.")
        key = choice.read_key(options.api_key_file, os.environ)
        engine = choice.connect(options.url, key)
    try:
        yield engine
    finally:
        engine.close()


def served_name(options: argparse.Namespace) -> str | None:
    """The model to name in requests: a model in this process is the default one."""
    name: str | None = options.model
    return name if options.url is not None else None


# The console script `tipserve`: finds the command, runs it, and turns errors into sentences.

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
