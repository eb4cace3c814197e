"""`python -m model`: convert, prepare in the cache or show a package; build engines for it."""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Final, get_args

from model.conversion.cache import VARIABLE, PackageCache, default_cache
from model.conversion.prepare import Order, Preparer
from model.conversion.report import JsonLines, Lines, Report
from model.conversion.show import describe_package
from model.conversion.source import CheckpointSource, parse_checkpoint
from model.graphs import Precision
from model.manifest import check_model_name
from model.package import open_package
from model.parity import command as check
from model.runtime.tensorrt import command as engines
from model.runtime.tensorrt.calls import GpuError

SOURCE_HELP: Final = (
    "a transformers folder, a folder with an official pair of .npz files, or a hub id with "
    "@revision behind it if wanted, such as google/tipsv2-b14; google/tipsv2-b14-dpt is the model "
    "with its dense heads"
)
# Exit statuses: what the user can mend, and what was not finished.
FAILED, ENDED = 1, 143


def run(arguments: Sequence[str]) -> int:
    """Run one command.

    Args:
        arguments: The command line without the program's name.

    Returns:
        The exit status: 0, or 1 with a sentence on standard error.

    Raises:
        SystemExit: An option that is not known, or `--help`.
    """
    options = _parser().parse_args(arguments)
    # Bars of libraries would break the lines; what is downloaded is told in lines.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    signal.signal(signal.SIGTERM, _end)
    if getattr(options, "follow_stdin", False):
        threading.Thread(target=_end_with_stdin, name="stdin", daemon=True).start()
    report: Report = JsonLines() if getattr(options, "report", "") == "json" else Lines()
    try:
        if options.command == "show":
            print(describe_package(open_package(options.folder)))
        elif options.command == "convert":
            report.say("package", str(_convert(options, report)))
        elif options.command == "check":
            check.run(options, lambda text: report.say("step", text))
        elif options.command == "build-engine":
            engines.run(options, options.cache, lambda text: report.say("step", text))
        else:
            report.say("package", str(_prepare(options, report)))
    except (ValueError, OSError, ImportError, GpuError) as error:
        # The user's to mend: the message says how, and a traceback would hide it.
        report.say("error", str(error))
        return FAILED
    return 0


def _convert(options: argparse.Namespace, report: Report) -> Path:
    preparer = _preparer(options, report)
    return preparer.write(_order(options), options.output).path


def _prepare(options: argparse.Namespace, report: Report) -> Path:
    return _preparer(options, report).prepare(_order(options), verify=options.verify).path


def _preparer(options: argparse.Namespace, report: Report) -> Preparer:
    return Preparer(
        PackageCache(options.cache.expanduser()),
        lambda text: report.say("step", text),
        lambda text: report.say("warning", text),
    )


def _order(options: argparse.Namespace) -> Order:
    dense: CheckpointSource | None = None
    if options.dense is not None:
        dense = parse_checkpoint(options.dense, may_be_file=True)
    if options.name is not None:
        check_model_name(options.name)
    return Order(
        base=parse_checkpoint(options.source),
        dense=dense,
        precisions=tuple(dict.fromkeys(("fp32", *options.precision))),
        name=options.name,
    )


def _end(number: int, frame: FrameType | None) -> None:
    """Leave by way of every `finally`, so that nothing half-written stays."""
    del number, frame
    raise SystemExit(ENDED)


def _end_with_stdin() -> None:
    """End when whoever started this ends, however it ends: its end of the pipe then closes."""
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m model", description=sys.modules[__name__].__doc__, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True)
    convert = commands.add_parser(
        "convert", help="write a model package into a folder", allow_abbrev=False
    )
    convert.add_argument("source", help=SOURCE_HELP)
    convert.add_argument("output", type=Path, help="absent, empty, or an older package")
    convert.add_argument("--name", help="the model's name for clients; default: the source's")
    prepare = commands.add_parser(
        "prepare",
        help="bring a model into the cache, as serving it does, and print its folder",
        allow_abbrev=False,
    )
    prepare.add_argument("source", help=SOURCE_HELP)
    prepare.add_argument(
        "--no-verify",
        dest="verify",
        action="store_false",
        help="leave digests of a package that is found to whoever opens it",
    )
    prepare.add_argument("--report", choices=("lines", "json"), default="lines")
    prepare.add_argument("--follow-stdin", action="store_true", help="end when standard input does")
    prepare.set_defaults(name=None)
    for command in (convert, prepare):
        _add_making(command)
    show = commands.add_parser(
        "show", help="verify a package and say what it is", allow_abbrev=False
    )
    show.add_argument("folder", help="a model package, or `bundled`")
    measure = commands.add_parser("check", help=check.HELP, allow_abbrev=False)
    check.add_arguments(measure)
    build = commands.add_parser("build-engine", help=engines.HELP, allow_abbrev=False)
    engines.add_arguments(build)
    _add_cache(build)
    return parser


def _add_making(command: argparse.ArgumentParser) -> None:
    command.add_argument("--dense", metavar="SOURCE", help="dense heads from elsewhere")
    command.add_argument(
        "--precision",
        action="append",
        choices=get_args(Precision),
        default=[],
        help="graphs beside those in fp32; give it once for each",
    )
    _add_cache(command)


def _add_cache(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--cache",
        type=Path,
        default=Path(os.environ.get(VARIABLE) or default_cache(os.environ)),
        help="folder of converted packages and built engines; also the variable "
        f"{VARIABLE} (default: %(default)s)",
    )
