"""The console script `tipserve`: parse arguments, run a command, report errors."""

import argparse
import importlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

from service.engines import choice
from service.engines.choice import KEY_VARIABLE, SCHEMES, URL_VARIABLE
from service.engines.engine import Engine, EngineError, UserError
from service.machine import python_command
from service.monitoring.metrics import release

# Exit statuses. After 130 (SIGINT) and 143 (SIGTERM) the same command continues `tipserve embed`.
DONE: Final = 0
FAILED: Final = 1
WRONG_USAGE: Final = 2
DONE_WITH_SKIPPED_IMAGES: Final = 3
INTERRUPTED: Final = 130
TERMINATED: Final = 143
MEANINGS: Final = (
    "exit status: 0 success; 1 failure, with a message on standard error; 2 wrong command line; "
    "3 success, but some images were skipped; 130 or 143 interrupted"
)
# The settings of the service that have flags here; variables set all others.
LOADING: Final = ("runtime", "precision", "device", "cache")
# Commands that other programs of this distribution run: module and first arguments.
PROGRAMS: Final = {
    "serve": ("service", ("serve",)),
    "convert": ("model", ("convert",)),
    "show": ("model", ("show",)),
}
RESUMABLE: Final = ("embed", "segment")
COMMANDS: Final = ("embed", "segment", "models", "bench")
# The extra that installs an optional package.
EXTRAS: Final = {"httpx": "cli", "pyarrow": "cli", "rich": "cli", "ray": "bulk"}
HELP: Final = f"""usage: tipserve COMMAND ...

Embeds and segments images, with a model in this process or on a server.

commands:
  embed     write the embeddings of many images as Parquet
  segment   write the mask of an image for named classes, or the instances of many as COCO
  models    list the models that can be used
  bench     load a running server, and print throughput and latency by stage
  serve     run the server; the same as python -m service
  convert   convert released weights to a model package; the same as python -m model convert
  show      verify and describe a model package; the same as python -m model show

examples:
  tipserve segment photo.jpg --classes "dog, grass" -o mask.png
  tipserve embed photos/ -o photos.parquet
  tipserve embed photos/ -o photos.parquet --url http://localhost:8000
  tipserve serve --model google/tipsv2-b14

Run `tipserve COMMAND --help` for the options of a command, `tipserve --version` for the version.
{MEANINGS}
"""
Execute = Callable[[str, list[str]], object]


class Interrupted(BaseException):
    """A signal asks the command to stop."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def main(arguments: Sequence[str] | None = None, execute: Execute = os.execv) -> int:
    """Run a command; returns the exit status.

    Args:
        arguments: The command line without the program name; None is that of this process.
        execute: Replaces this process by another program.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in {"-h", "--help", "help"}:
        print(HELP, end="", file=sys.stdout if given else sys.stderr)
        return DONE if given else WRONG_USAGE
    if given[0] == "--version":
        print(f"tipserve {release()}")
        return DONE
    command, rest = given[0], given[1:]
    if command in PROGRAMS:
        module, first = PROGRAMS[command]
        execute(sys.executable, python_command("-m", module, *first, *rest))
        return DONE
    if command not in COMMANDS:
        known = ", ".join([*COMMANDS, *PROGRAMS])
        print(f"tipserve: unknown command {command!r}. Commands: {known}.", file=sys.stderr)
        return WRONG_USAGE
    return _run(command, rest)


def _run(command: str, arguments: Sequence[str]) -> int:
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    handlers = {
        number: signal.signal(number, _interrupt) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        # Imported here, because each command needs other optional packages.
        run: Callable[[Sequence[str]], int] = importlib.import_module(
            f"service.commands.{command}"
        ).run
        return run(arguments)
    except Interrupted as interrupted:
        hint = " Run the same command again to continue." if command in RESUMABLE else ""
        print(f"tipserve {command}: interrupted.{hint}", file=sys.stderr)
        return interrupted.status
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        message = f"{error.name} is not installed. Run: pip install 'tipserve[{extra}]'"
        return _fail(command, message)
    except UserError as error:
        return _fail(command, str(error))
    except OSError as error:
        # The errors of pyarrow have no file name, and some have no number and so no `strerror`.
        reason = error.strerror or str(error)
        return _fail(
            command, f"{reason}." if error.filename is None else f"{error.filename}: {reason}."
        )
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _fail(command: str, message: str) -> int:
    print(f"tipserve {command}: {message}", file=sys.stderr)
    return FAILED


def _interrupt(number: int, frame: FrameType | None) -> None:
    del frame
    raise Interrupted(INTERRUPTED if number == signal.SIGINT else TERMINATED)


def new_parser(command: str, description: str, examples: Sequence[str]) -> argparse.ArgumentParser:
    """Make a parser whose help ends with examples and exit statuses."""
    lines = "\n".join(f"  tipserve {command} {example}" for example in examples)
    return argparse.ArgumentParser(
        prog=f"tipserve {command}",
        description=description,
        epilog=f"examples:\n{lines}\n\n{MEANINGS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a server or a model in this process."""
    group = parser.add_argument_group("model: in this process, or on a server")
    group.add_argument(
        "--model",
        help="bundled (default), a package folder, a checkpoint or a Hugging Face id, as for "
        "`serve`; with --url the name of a served model",
    )
    add_server_options(group)
    for name in LOADING:
        group.add_argument(
            f"--{name}",
            help=f"as for `serve`; not with --url (default: the variable TIPSERVE_{name.upper()})",
        )


def add_server_options(parser: argparse._ActionsContainer) -> None:
    """Add the options that name a server."""
    parser.add_argument(
        "--url",
        default=os.environ.get(URL_VARIABLE) or None,
        help=f"use a server: {SCHEMES} (default: the variable {URL_VARIABLE})",
    )
    parser.add_argument(
        "--api-key-file",
        type=Path,
        help=f"file with the API key of the server (default: the variable {KEY_VARIABLE})",
    )


def read_api_key(options: argparse.Namespace) -> str | None:
    """The key of the server, from the file or the variable.

    Raises:
        EngineError: The file cannot be read.
    """
    return choice.read_key(options.api_key_file, os.environ)


def loading_flags(options: argparse.Namespace) -> tuple[str, ...]:
    """The service's flags for a model in this process."""
    names = ("model", *LOADING)
    given = {name: getattr(options, name) for name in names}
    return tuple(f"--{name}={value}" for name, value in given.items() if value is not None)


@contextmanager
def opened_engine(
    options: argparse.Namespace, load: Callable[[Sequence[str]], Engine] = choice.load
) -> Iterator[Engine]:
    """Open the engine that the options choose, and close it at the end.

    Raises:
        EngineError: The options conflict, or the model cannot be loaded.
    """
    if options.url is None:
        engine = load(loading_flags(options))
    else:
        unused = [name for name in LOADING if getattr(options, name) is not None]
        if unused:
            raise EngineError(f"--{unused[0]} has no effect with --url; remove one of them.")
        engine = choice.connect(options.url, read_api_key(options))
    try:
        yield engine
    finally:
        engine.close()


def served_name(options: argparse.Namespace) -> str | None:
    """The field `model` of requests: None for the only model of this process."""
    name: str | None = options.model
    return name if options.url is not None else None
