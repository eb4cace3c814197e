"""The command line of `python -m model`."""

import argparse
import os
from pathlib import Path
from typing import Final, get_args

from model.conversion.cache import VARIABLE, default_cache
from model.graphs import Precision
from model.parity import command as check
from model.runtime.tensorrt import command as engines

SOURCE_HELP: Final = (
    "a transformers folder, a folder with an official pair of .npz files, or a hub id with "
    "@revision behind it if wanted, such as google/tipsv2-b14; google/tipsv2-b14-dpt is the model "
    "with its dense heads; for `convert` with --precision also a package, which gets further graphs"
)


def parse_options(arguments: list[str]) -> argparse.Namespace:
    """Read a command line; `command` says which command it is.

    Raises:
        SystemExit: An option that is not known, or `--help`.
    """
    parser = argparse.ArgumentParser(
        prog="python -m model",
        description="Converts released weights into model packages, and looks after packages.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text, add in (
        ("convert", "write a model package into a folder", _add_convert),
        (
            "prepare",
            "bring a model into the cache, as serving does; print its folder",
            _add_prepare,
        ),
        ("show", "verify a package and say what it is", _add_show),
        ("check", check.HELP, check.add_arguments),
        ("publish", "place a verified package where a service reads it", _add_publish),
        ("rollback", "make an older published package the current one", _add_rollback),
        ("build-engine", engines.HELP, _add_build_engine),
    ):
        add(commands.add_parser(name, help=text, description=text, allow_abbrev=False))
    return parser.parse_args(arguments)


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help=SOURCE_HELP)
    parser.add_argument("output", type=Path, help="absent, empty, or an older package")
    parser.add_argument("--name", help="the model's name for clients; default: the source's")
    _add_making(parser)


def _add_prepare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help=SOURCE_HELP)
    _add_making(parser)
    parser.add_argument(
        "--no-verify",
        dest="verify",
        action="store_false",
        help="leave digests of a package that is found to whoever opens it",
    )
    parser.add_argument(
        "--report",
        choices=("lines", "json"),
        default="lines",
        help="lines for people, or JSON lines on standard output for a program",
    )
    parser.add_argument("--follow-stdin", action="store_true", help="end when standard input does")


def _add_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="a model package, or `bundled`")


def _add_publish(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("package", help="a model package, or `bundled`")
    _add_repository(parser)
    parser.add_argument(
        "--keep",
        type=int,
        default=5,
        help="how many of the newest versions stay (default 5); so do the one that was current "
        "before, and every one that a link in the folder leads to",
    )
    parser.add_argument(
        "--if-empty", action="store_true", help="do nothing where one is published already"
    )


def _add_rollback(parser: argparse.ArgumentParser) -> None:
    _add_repository(parser)
    parser.add_argument("--to", metavar="VERSION", help="default: the one before the current")


def _add_repository(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--repository",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="of one model's published packages, each a version beside the link `current`",
    )


def _add_build_engine(parser: argparse.ArgumentParser) -> None:
    engines.add_arguments(parser)
    _add_cache(parser)


def _add_making(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dense", metavar="SOURCE", help="dense heads from elsewhere")
    parser.add_argument(
        "--precision",
        action="append",
        choices=get_args(Precision),
        default=[],
        help="graphs beside those in fp32; give it once for each",
    )
    _add_cache(parser)


def _add_cache(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(os.environ.get(VARIABLE) or default_cache(os.environ)),
        help="folder of converted packages and built engines; also the variable "
        f"{VARIABLE} (default: %(default)s)",
    )
