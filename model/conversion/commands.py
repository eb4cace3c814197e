"""The commands of `python -m model`: make, show, check and publish packages; build engines."""

import argparse
import os
import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Final

from model.conversion.cache import PackageCache
from model.conversion.errors import COMPARING, require
from model.conversion.options import parse_options
from model.conversion.prepare import Order, Preparer
from model.conversion.report import JsonLines, Lines, Report
from model.conversion.show import describe_package
from model.conversion.source import FolderSource, parse_checkpoint
from model.manifest import MANIFEST_NAME, check_model_name
from model.package import open_package
from model.parity import command as check
from model.publication import Repository
from model.runtime.tensorrt import command as engines
from model.runtime.tensorrt.calls import GpuError

# Exit statuses: what the user can mend; what was told to end has this and the signal's number.
FAILED: Final = 1
SIGNALLED: Final = 128


def run(arguments: Sequence[str]) -> int:
    """Run one command.

    Args:
        arguments: The command line without the program's name.

    Returns:
        The exit status: 0, or 1 with a sentence on standard error.

    Raises:
        SystemExit: An option that is not known, `--help`, or a signal that ends it.
    """
    options = parse_options(list(arguments))
    # Bars of libraries would break the lines; what is downloaded is told in lines.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    is_for_program = getattr(options, "report", "lines") == "json"
    report: Report = JsonLines() if is_for_program else Lines()
    try:
        if options.command == "build-engine":
            engines.run(options, options.cache, lambda text: report.say("step", text))
        elif options.command == "check":
            require(COMPARING, purpose="comparing a package with its model")
            check.run(options, lambda text: report.say("step", text))
        else:
            report.say("result", _result(options, report))
    except (ValueError, OSError, ImportError, GpuError) as error:
        # The user's to mend: the message says how, and a traceback would hide it.
        report.say("error", str(error))
        return FAILED
    return 0


def end_on_signal() -> None:
    """Let SIGTERM and Ctrl-C leave by way of every `finally`: nothing half-written stays."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)


def _result(options: argparse.Namespace, report: Report) -> str:
    if options.command == "show":
        return describe_package(open_package(options.folder))
    if options.command in ("publish", "rollback"):
        return _place(options, report)
    if getattr(options, "follow_stdin", False):
        threading.Thread(target=_end_with_stdin, name="stdin", daemon=True).start()
    preparer = Preparer(
        PackageCache(options.cache.expanduser()),
        lambda text: report.say("step", text),
        lambda text: report.say("warning", text),
    )
    order = _order(options)
    if options.command == "convert":
        return str(preparer.write(order, options.output).path)
    return str(preparer.prepare(order, verify=options.verify).path)


def _place(options: argparse.Namespace, report: Report) -> str:
    """Publish or go back; gives the folder of the version that is current then."""
    repository = Repository(options.repository)
    if options.command == "rollback":
        return str(repository.roll_back(options.to))
    current = repository.current()
    if options.if_empty and current in repository.versions():
        return str(options.repository / current)
    published = repository.publish(
        options.package, keep=options.keep, progress=lambda text: report.say("step", text)
    )
    return str(published)


def _order(options: argparse.Namespace) -> Order:
    name = getattr(options, "name", None)
    if name is not None:
        check_model_name(name)
    dense = options.dense
    adds = options.command == "convert" and bool(options.precision)
    base = parse_checkpoint(options.source, may_be_package=adds)
    if name is None and isinstance(base, FolderSource) and (base.path / MANIFEST_NAME).is_file():
        name = open_package(base.path).manifest.name
    return Order(
        base=base,
        dense=parse_checkpoint(dense, may_be_file=True) if dense is not None else None,
        precisions=tuple(dict.fromkeys(("fp32", *options.precision))),
        name=name,
    )


def _end(number: int, frame: FrameType | None) -> None:
    del frame
    raise SystemExit(SIGNALLED + number)


def _end_with_stdin() -> None:
    """End when whoever started this ends, however it ends: its end of the pipe then closes."""
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
