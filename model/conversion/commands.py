"""The command line of conversion: convert, prepare and show."""

import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated, Final, Literal

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from model.card import parity_table
from model.conversion.cache import VARIABLE, PackageCache, default_cache
from model.conversion.convert import ConversionRequest
from model.conversion.errors import COMPARING, ConversionError, require
from model.conversion.prepare import Preparer
from model.conversion.source import (
    CheckpointSource,
    FolderSource,
    JoinedSource,
    PackageSource,
    parse_checkpoint,
    parse_source,
    split_models,
    split_name,
)
from model.graphs import USUAL_PRECISIONS, DepthActivation, ExportPrecision, graph_file
from model.manifest import MANIFEST_NAME, check_model_name
from model.package import ModelPackage, open_package
from model.publication import Repository
from model.runtime.base import LaneShare
from model.runtime.choice import RuntimeChoice
from model.runtime.machine import this_hardware
from model.runtime.tensorrt.runtime import TensorRtRuntime

PROGRAM: Final = "python -m model"
ENGINE_PRECISIONS: Final[tuple[ExportPrecision, ...]] = ("fp32", "bf16", "fp16")
# Exit statuses: an error that the user can fix; the base for signals, plus their number.
FAILED: Final = 1
WRONG_USAGE: Final = 2
SIGNALLED: Final = 128

# A server that runs `prepare --report=json` reads these lines:
#
# {"step": "exporting the vision graph"}      progress
# {"warning": "..."}                          a problem that was worked around
# {"result": "/cache/packages/..."}           the end: the package's folder
# {"error": "..."}                            the end: a message for the user
Kind = Literal["step", "warning", "result", "error"]
Say = Callable[[Kind, str], None]
# A step of several, as `model.parity.measure.counted` says it.
NUMBER: Final = re.compile(r"(.*): (\d+) of (\d+)")

# Parameters of `convert` and `show`, which `tipserve` has as well: it shows help as it is written,
# and docstrings have line ends.
Source = Annotated[
    str,
    Parameter(
        help="A transformers folder, a folder with an official pair of .npz files, or a hub id "
        "such as google/tipsv2-b14, optionally with @revision. google/tipsv2-b14-dpt is the model "
        "with its dense heads, and so is a folder x-dpt beside a folder x; base+heads joins "
        "others. With --precision also a package, to which graphs are added."
    ),
]
Precisions = Annotated[
    tuple[ExportPrecision, ...],
    Parameter(
        help="Additional graphs, next to fp32; may be repeated. What is named must not differ too "
        "much. Default: fp16, which is left out if it does; into the cache only if this machine "
        "has a GPU.",
        show_default=False,
    ),
]
Thorough = Annotated[
    bool,
    Parameter(
        help="Compare on all sizes: also on twice the native size and on batches of it, which "
        "takes many times as long with a large model.",
        show_default=False,
    ),
]
Activation = Annotated[
    DepthActivation | None,
    Parameter(
        help="What follows the last layer of the depth head. Default: what config.json of the "
        "heads says, which is relu of transformers; linear is depth of the released notebook.",
        show_default=False,
    ),
]
Models = Annotated[
    str,
    Parameter(
        help="Models as the server's --model takes them: packages, `bundled`, checkpoints and hub "
        "ids, separated by commas, each optionally as name=source."
    ),
]
Cache = Annotated[
    Path | None,
    Parameter(
        help="Folder of converted packages and built engines. Default: the variable "
        f"{VARIABLE}, else the user's cache."
    ),
]


def new_app() -> App:
    """Make the command line of `python -m model`; docstrings of commands are its help."""
    app = App(
        name=PROGRAM,
        help="Converts released weights into model packages, and manages packages.",
        help_format="markdown",
        version_flags=(),
        default_parameter=Parameter(negative=(), show_default=False),
        result_action="return_value",
        exit_on_error=False,
        print_error=False,
    )
    for command in (convert, prepare, show, check, publish, build_engine):
        app.command(command)
    return app


def convert(  # noqa: PLR0913 - options of the command
    source: Source,
    output: Path,
    /,
    *,
    name: str | None = None,
    precision: Precisions = (),
    depth_activation: Activation = None,
    thorough: Thorough = False,
    cache: Cache = None,
) -> int:
    """Convert released weights to a model package in a folder.

    Args:
        source: See `Source`.
        output: Absent, empty, or an older package.
        name: Name for clients. Default: the name of the source.
        precision: See `Precisions`.
        depth_activation: See `Activation`.
        thorough: See `Thorough`.
        cache: See `Cache`.
    """

    def write(say: Say) -> str:
        asked = parse_checkpoint(source, may_be_package=bool(precision))
        request = _request(asked, precision, name=name, is_for_gpus=True)
        if depth_activation is not None and request.dense is None:
            raise ConversionError(
                f"{source} has no dense heads, so --depth-activation has no effect; remove it"
            )
        request = replace(request, is_thorough=thorough, depth_activation=depth_activation)
        return str(_preparer(cache, say).write(request, output).path)

    return _report(write)


def prepare(
    models: Models,
    /,
    *,
    precision: Precisions = (),
    no_verify: bool = False,
    report: Literal["lines", "json"] = "lines",
    follow_stdin: bool = False,
    cache: Cache = None,
) -> int:
    """Convert models into the cache, as the server does; print the packages' folders.

    Args:
        models: See `Models`.
        precision: See `Precisions`.
        no_verify: Do not verify the digests of packages and cached packages.
        report: Plain lines (default), or JSON lines on standard output for programs.
        follow_stdin: Exit when standard input closes.
        cache: See `Cache`.
    """

    def convert_all(say: Say) -> str:
        if follow_stdin:
            threading.Thread(target=_end_with_stdin, name="stdin", daemon=True).start()
        packages = _prepared(models, precision, cache, say, verify=not no_verify)
        return "\n".join(str(package.path) for package in packages)

    return _report(convert_all, json_lines() if report == "json" else None)


def show(models: Models, /) -> int:
    """Verify and describe model packages; a checkpoint is only named."""

    def describe(_: Say) -> str:
        told = []
        for source in (split_name(one)[1] for one in split_models(models)):
            if isinstance(parse_source(source), PackageSource):
                told.append(describe_package(open_package(source)))
            else:
                told.append(f"{source} is not a package: `{PROGRAM} prepare` converts it")
        return "\n\n".join(told)

    return _report(describe)


def check(package: str, /, *, thorough: Thorough = False, write: bool = False) -> int:
    """Compare a package's graphs with its model, on every backend of this machine.

    Args:
        package: A model package, or `bundled`.
        thorough: See `Thorough`.
        write: Write the results to the package's manifest and card; results of backends that this
            machine lacks are kept.
    """

    def compare(say: Say) -> None:
        require(COMPARING, purpose="comparing a package with its model")
        # Importing torch takes seconds, and other commands do not need it.
        from model.encoder import load_encoder  # noqa: PLC0415
        from model.parity.gate import prove_package, run_reference, write_parity  # noqa: PLC0415

        opened, progress = open_package(package), partial(say, "step")
        # Nothing holds the encoder while the graphs are compared.
        reference = run_reference(
            load_encoder(opened.path), opened, is_thorough=thorough, progress=progress
        )
        entries = prove_package(opened, reference, progress=progress)
        print(parity_table(entries))
        if write:
            progress(f"written to {write_parity(opened, entries).path}")

    return _report(compare)


def publish(package: str, /, *, repository: Path, if_empty: bool = False) -> int:
    """Copy a verified package to a folder that a server reads; print the current version's folder.

    Args:
        package: A model package, `bundled`, or the URL of a package in an object store, such as
            s3://bucket/student.
        repository: Folder with the published versions of one model and the link `current`.
        if_empty: Do nothing if a package is published already.
    """

    def copy(_: Say) -> str:
        published = Repository(repository)
        current = published.current()
        if if_empty and current in published.versions():
            return str(repository / current)
        return str(published.publish(package))

    return _report(copy)


def build_engine(
    models: Models,
    /,
    *,
    precision: tuple[ExportPrecision, ...] = (),
    max_batch_patches: int | None = None,
    cache: Cache = None,
) -> int:
    """Build a package's TensorRT engines into the cache, on a GPU like the one that will serve.

    Args:
        models: See `Models`.
        precision: May be repeated. Default: all precisions of the package except int8.
        max_batch_patches: As the service's setting, if that is set. Default: 64 images.
        cache: See `Cache`.
    """

    def build_all(say: Say) -> None:
        share = LaneShare(cache=_cache_folder(cache), max_batch_patches=max_batch_patches)
        for package in _prepared(models, precision, cache, say):
            files = package.manifest.files
            usual = [p for p in ENGINE_PRECISIONS if graph_file("vision", p) in files]
            for one in precision or usual:
                began = time.monotonic()
                choice = RuntimeChoice(runtime="tensorrt", precision=one, device="gpu", reason="")
                TensorRtRuntime(package, choice, share, progress=partial(say, "step")).close()
                say("step", f"{one}: ready after {time.monotonic() - began:.0f} s")

    return _report(build_all)


def run(arguments: Sequence[str]) -> int:
    """Run one command.

    Args:
        arguments: The command line without the program's name.

    Returns:
        The exit status: 0, 1 with a sentence on standard error, or 2 for a wrong command line.
    """
    app = new_app()
    if not arguments:
        app.help_print([], console=Console(stderr=True))
        return WRONG_USAGE
    try:
        # Help returns None.
        return app(list(arguments)) or 0
    except CycloptsError as error:
        print(f"{PROGRAM}: {error}\nRun `{PROGRAM} --help` for help.", file=sys.stderr)
        return WRONG_USAGE


def print_line(kind: Kind, text: str) -> None:
    """Print the result on standard output, and other messages on standard error."""
    if kind == "result":
        print(text, flush=True)
    else:
        prefix = "" if kind == "step" else f"{kind}: "
        print(f"{prefix}{text}", file=sys.stderr, flush=True)


@contextmanager
def bar_on_terminal() -> Iterator[Say]:
    """Print as `print_line`; on a terminal, with a bar that moves by steps such as `x: 3 of 14`."""
    console = Console(stderr=True)
    bar = Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
        console=console,
        transient=True,
        redirect_stdout=False,
        disable=not console.is_terminal,
    )

    def say(kind: Kind, text: str) -> None:
        number = NUMBER.fullmatch(text)
        name, done, total = (
            (number[1], int(number[2]) - 1, int(number[3])) if number else (text, 0, None)
        )
        if bar.disable or done == 0:
            print_line(kind, text if bar.disable else name)
        if done == 0:
            for earlier in bar.task_ids:
                bar.remove_task(earlier)
            bar.add_task(name, total=total)
        bar.update(bar.task_ids[-1], completed=done)
        # The hub's library draws bars of its own.
        (bar.stop if text.startswith("downloading ") else bar.start)()

    try:
        yield say
    finally:
        bar.stop()


def json_lines() -> Say:
    """Write JSON lines on standard output; output of libraries goes to standard error from now."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(kind: Kind, text: str) -> None:
        out.write(json.dumps({kind: text}) + "\n")
        out.flush()

    return say


def describe_package(package: ModelPackage) -> str:
    """Describe a verified package: inputs, outputs, files, parity and provenance."""
    manifest = package.manifest
    buckets = ", ".join(f"{height}x{width}" for height, width in manifest.shape_buckets)
    total_mb = sum(entry.size_bytes for entry in manifest.files.values()) / 1e6
    lines = [
        f"{manifest.name} ({manifest.variant}), licence {manifest.licence}, in {package.path}",
        f"outputs    {', '.join(manifest.outputs)}; {manifest.embed_dim} numbers each",
        f"sizes      {manifest.native_size} pixels native, {manifest.min_size} to "
        f"{manifest.max_size} in steps of {manifest.size_multiple}; served {buckets}",
        f"texts      up to {manifest.max_text_tokens} tokens",
        f"files      {len(manifest.files)}, {total_mb:.1f} MB; every SHA-256 verified",
    ]
    lines += [
        f"  {entry.size_bytes:>14,} bytes  {entry.sha256[:12]}  {name}"
        for name, entry in manifest.files.items()
    ]
    lines += ["parity     graphs against the model in float32", parity_table(manifest.parity)]
    lines += ["provenance", json.dumps(manifest.provenance, indent=2)]
    return "\n".join(lines)


def end_on_signal() -> None:
    """Turn SIGTERM and Ctrl-C into SystemExit, so that `finally` blocks remove partial files."""

    def end(number: int, _: FrameType | None) -> None:
        raise SystemExit(SIGNALLED + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


def _report(work: Callable[[Say], str | None], program: Say | None = None) -> int:
    """Do the work of a command, tell a user or a program, and return the exit status."""
    say = program or print_line
    try:
        with bar_on_terminal() if program is None else nullcontext(program) as shown:
            result = work(shown)
    except (ValueError, OSError, ImportError) as error:
        # The user can fix these: the message says how, and a traceback would hide it.
        say("error", str(error))
        return FAILED
    if result is not None:
        say("result", result)
    return 0


def _cache_folder(named: Path | None) -> Path:
    return Path(named or os.environ.get(VARIABLE) or default_cache(os.environ)).expanduser()


def _preparer(cache: Path | None, say: Say) -> Preparer:
    folder = PackageCache(_cache_folder(cache))
    return Preparer(folder, partial(say, "step"), partial(say, "warning"))


def _prepared(
    models: str,
    precisions: Sequence[ExportPrecision],
    cache: Path | None,
    say: Say,
    *,
    verify: bool = True,
) -> list[ModelPackage]:
    """The packages of models, in their order; checkpoints are converted."""
    preparer, has_gpu = _preparer(cache, say), this_hardware().has_gpu
    packages = []
    for text in (split_name(model)[1] for model in split_models(models)):
        source = parse_source(text)
        if isinstance(source, PackageSource):
            packages.append(open_package(text, verify=verify))
        else:
            request = _request(source, precisions, is_for_gpus=has_gpu)
            packages.append(preparer.prepare(request, verify=verify))
    return packages


def _request(
    source: CheckpointSource | JoinedSource,
    precisions: Sequence[ExportPrecision],
    *,
    name: str | None = None,
    is_for_gpus: bool,
) -> ConversionRequest:
    if name is not None:
        check_model_name(name)
    if isinstance(source, JoinedSource):
        name, base, dense = name or source.name, source.base, source.heads
    else:
        base, dense = source, None
    if name is None and isinstance(base, FolderSource) and (base.path / MANIFEST_NAME).is_file():
        name = open_package(base.path).manifest.name
    usual = USUAL_PRECISIONS if not precisions and is_for_gpus else ()
    return ConversionRequest(
        base=base,
        dense=dense,
        precisions=tuple(dict.fromkeys(("fp32", *precisions, *usual))),
        may_fail=usual,
        name=name,
    )


def _end_with_stdin() -> None:
    """Exit when the parent process ends for any reason, which closes its end of the pipe."""
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
