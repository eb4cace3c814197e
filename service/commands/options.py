"""Options that several commands have, and what they make of them."""

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from service.commands.exit_status import MEANINGS
from service.engines import choice
from service.engines.choice import KEY_VARIABLE, SCHEMES, URL_VARIABLE
from service.engines.engine import Engine, EngineError

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
