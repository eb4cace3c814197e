"""The command line of conversion: convert, prepare and show."""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import IO, Annotated, Final, Literal, Protocol

from cyclopts import App, CycloptsError, Parameter
from pydantic import JsonValue
from rich.console import Console

from model.conversion.cache import VARIABLE, PackageCache, default_cache
from model.conversion.convert import ConversionRequest
from model.conversion.errors import COMPARING, CONVERTING, ConversionError, require
from model.conversion.prepare import Preparer
from model.conversion.source import (
    FolderSource,
    JoinedSource,
    PackageSource,
    parse_checkpoint,
    parse_heads,
    parse_source,
    split_models,
    split_name,
)
from model.graphs import USUAL_PRECISIONS, DepthActivation, HalfPrecision, Precision
from model.manifest import MANIFEST_NAME, Manifest, ParityEntry, check_model_name
from model.package import ModelPackage, open_package
from model.parity import command as parity
from model.publication import Repository
from model.runtime.machine import this_hardware
from model.runtime.tensorrt import command as engines

PROGRAM: Final = "python -m model"
MODELS_HELP: Final = (
    "Models as the server's --model takes them: packages, `bundled`, checkpoints and hub ids, "
    "separated by commas, each optionally as name=source."
)
SUMMARY: Final = "Converts released weights into model packages, and manages packages."
# The commands that `tipserve` has, too.
CONVERT_HELP: Final = "Convert released weights to a model package in a folder."
SHOW_HELP: Final = "Verify and describe model packages."


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """The cache of a command."""

    cache: Annotated[
        Path | None,
        Parameter(
            help="Folder of converted packages and built engines. Default: the variable "
            f"{VARIABLE}, else the user's cache."
        ),
    ] = None

    @property
    def cache_folder(self) -> Path:
        """The folder of the cache."""
        named = self.cache or os.environ.get(VARIABLE) or default_cache(os.environ)
        return Path(named).expanduser()


@dataclass(frozen=True, kw_only=True)
class MakingOptions(CacheOptions):
    """How packages are made."""

    dense: Annotated[str | None, Parameter(help="Dense heads of the source, as base+heads.")] = None
    depth_activation: Annotated[
        DepthActivation,
        Parameter(
            help="Activation after the last convolution of a Scenic depth head, which its zip "
            "does not state; a -dpt folder states its own."
        ),
    ] = "linear"
    precision: Annotated[
        tuple[Precision, ...],
        Parameter(
            help="Additional graphs, next to fp32; may be repeated. What is named must not differ "
            "too much. Default: fp16, which is left out if it does; into the cache only if this "
            "machine has a GPU.",
            show_default=False,
        ),
    ] = ()


Source = Annotated[
    str,
    Parameter(
        help="A transformers folder, a folder with an official pair of .npz files, or a hub id "
        "such as google/tipsv2-b14, optionally with @revision. google/tipsv2-b14-dpt is the model "
        "with its dense heads, and so is a folder x-dpt beside a folder x; base+heads joins "
        "others. With --precision also a package, to which graphs are added."
    ),
]
Models = Annotated[str, Parameter(help=MODELS_HELP)]
Package = Annotated[str, Parameter(help="A model package, or `bundled`.")]
RepositoryFolder = Annotated[
    Path,
    Parameter(help="Folder with the published versions of one model and the link `current`."),
]
Making = Annotated[MakingOptions, Parameter(name="*")]


def new_app() -> App:
    """Make the command line of `python -m model`."""
    app = App(
        name=PROGRAM,
        help=SUMMARY,
        help_format="plaintext",
        version_flags=(),
        default_parameter=Parameter(negative=()),
        result_action="return_value",
        exit_on_error=False,
        print_error=False,
    )
    for command, text in (
        (convert, CONVERT_HELP),
        (
            prepare,
            "Convert models into the cache, as the server does; print the packages' folders.",
        ),
        (
            extend,
            "Write a package with what GPUs use: the vision graph in fp16, and reference outputs. "
            "All other files stay byte for byte.",
        ),
        (show, SHOW_HELP),
        (check, parity.HELP),
        (publish, "Copy a verified package to a folder that a server reads."),
        (versions, "List the published packages, oldest first."),
        (prune, "Remove old published packages that are not in service."),
        (rollback, "Make an older published package the current one."),
        (build_engine, engines.HELP),
    ):
        app.command(command, help=text)
    return app


def convert(
    source: Source,
    output: Annotated[Path, Parameter(help="Absent, empty, or an older package.")],
    /,
    *,
    name: Annotated[
        str | None, Parameter(help="Name for clients. Default: the name of the source.")
    ] = None,
    thorough: Annotated[bool, Parameter(help=parity.THOROUGH_HELP, show_default=False)] = False,
    making: Making = MakingOptions(),
) -> int:
    """Write a model package; returns the exit status."""

    def write(reporter: Reporter) -> str:
        request = _request(
            source, making, name=name, may_be_package=bool(making.precision), is_for_gpus=True
        )
        request = replace(request, is_thorough=thorough)
        return str(_preparer(making, reporter).write(request, output).path)

    return _report(write)


def extend(
    package: Package,
    output: Annotated[Path, Parameter(help="Absent, empty, or an older package, also this one.")],
    /,
    *,
    precision: Annotated[
        tuple[HalfPrecision, ...],
        Parameter(help="Precision of a vision graph; may be repeated.", show_default=True),
    ] = ("fp16",),
) -> int:
    """Add graphs to a finished package; returns the exit status."""

    def add(reporter: Reporter) -> str:
        require(CONVERTING, purpose="adding graphs to a package")
        from model.export.added_graphs import add_graphs  # noqa: PLC0415 - torch takes seconds

        say = partial(reporter.say, "step")
        return str(add_graphs(open_package(package), precision, output, progress=say).path)

    return _report(add)


def prepare(
    models: Models,
    /,
    *,
    no_verify: Annotated[
        bool,
        Parameter(
            help="Do not verify the digests of packages and cached packages.", show_default=False
        ),
    ] = False,
    report: Annotated[
        Literal["lines", "json"],
        Parameter(help="Plain lines, or JSON lines on standard output for programs."),
    ] = "lines",
    follow_stdin: Annotated[
        bool, Parameter(help="Exit when standard input closes.", show_default=False)
    ] = False,
    making: Making = MakingOptions(),
) -> int:
    """Convert models into the cache; returns the exit status."""

    def convert_all(reporter: Reporter) -> str:
        if follow_stdin:
            threading.Thread(target=_end_with_stdin, name="stdin", daemon=True).start()
        packages = _prepared(models, making, reporter, verify=not no_verify)
        return "\n".join(str(package.path) for package in packages)

    return _report(convert_all, JsonLines() if report == "json" else None)


def show(models: Models, /) -> int:
    """Describe packages; returns the exit status."""
    return _report(
        lambda _: "\n\n".join(_described(split_name(one)[1]) for one in split_models(models))
    )


def check(
    package: Package,
    /,
    *,
    thorough: Annotated[bool, Parameter(help=parity.THOROUGH_HELP, show_default=False)] = False,
    write: Annotated[bool, Parameter(help=parity.WRITE_HELP, show_default=False)] = False,
) -> int:
    """Compare a package with its model; returns the exit status."""

    def compare(reporter: Reporter) -> None:
        require(COMPARING, purpose="comparing a package with its model")
        say = partial(reporter.say, "step")
        parity.run(package, is_thorough=thorough, is_written=write, progress=say)

    return _report(compare)


def publish(
    package: Annotated[
        str,
        Parameter(
            help="A model package, `bundled`, or the URL of a package in an object store, such as "
            "s3://bucket/student."
        ),
    ],
    /,
    *,
    repository: RepositoryFolder,
    if_empty: Annotated[
        bool, Parameter(help="Do nothing if a package is published already.", show_default=False)
    ] = False,
) -> int:
    """Publish a package and print the folder of the current version; returns the exit status."""

    def copy(_: Reporter) -> str:
        published = Repository(repository)
        current = published.current()
        if if_empty and current in published.versions():
            return str(repository / current)
        return str(published.publish(package))

    return _report(copy)


def versions(*, repository: RepositoryFolder) -> int:
    """Print the versions, and which is current; returns the exit status."""

    def listed(_: Reporter) -> str:
        published = Repository(repository)
        current = published.current()
        return "\n".join(
            f"{name} current" if name == current else name for name in published.versions()
        )

    return _report(listed)


def prune(
    *,
    repository: RepositoryFolder,
    keep: Annotated[int, Parameter(help="Number of newest versions to keep.")],
    in_service: Annotated[
        list[str],
        Parameter(
            help="Versions that replicas serve or a Deployment names, also of other repositories: "
            "they are kept, as are versions with a link.",
            consume_multiple=1,
        ),
    ],
) -> int:
    """Remove old versions and print those that are left; returns the exit status."""

    def remove(reporter: Reporter) -> str:
        published = Repository(repository)
        for name in published.prune(keep=keep, in_service=in_service):
            reporter.say("step", f"removed {name}")
        return "\n".join(published.versions())

    return _report(remove)


def rollback(
    *,
    repository: RepositoryFolder,
    to: Annotated[
        str | None, Parameter(help="A version. Default: the one before the current one.")
    ] = None,
) -> int:
    """Make an older version the current one, and print it; returns the exit status."""
    return _report(lambda _: str(Repository(repository).roll_back(to)))


def build_engine(
    models: Models,
    /,
    *,
    build: Annotated[engines.BuildOptions, Parameter(name="*")] = engines.BuildOptions(),
    cache: Annotated[CacheOptions, Parameter(name="*")] = CacheOptions(),
) -> int:
    """Build engines into the cache; returns the exit status."""

    def build_all(reporter: Reporter) -> None:
        making = MakingOptions(cache=cache.cache, precision=build.precision)
        for package in _prepared(models, making, reporter):
            engines.run(build, package, cache.cache_folder, partial(reporter.say, "step"))

    return _report(build_all)


# A server that runs `prepare --report=json` reads these lines:
#
# {"step": "exporting the vision graph"}      progress
# {"warning": "..."}                          a problem that was worked around
# {"result": "/cache/packages/..."}           the end: the package's folder
# {"error": "..."}                            the end: a message for the user

Kind = Literal["step", "warning", "result", "error"]


class Reporter(Protocol):
    """Where a command reports its progress."""

    def say(self, kind: Kind, text: str) -> None:
        """Report one message at once."""


class Lines:
    """Plain lines: steps, warnings and errors on standard error, the result on standard output."""

    def say(self, kind: Kind, text: str) -> None:
        """Print one line."""
        if kind == "result":
            print(text, flush=True)
            return
        prefix = "" if kind == "step" else f"{kind}: "
        print(f"{prefix}{text}", file=sys.stderr, flush=True)


class JsonLines:
    """JSON lines on standard output; output of libraries is redirected to standard error."""

    def __init__(self) -> None:
        self._out: IO[str] = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def say(self, kind: Kind, text: str) -> None:
        """Write one line."""
        self._out.write(json.dumps({kind: text}) + "\n")
        self._out.flush()


def describe_package(package: ModelPackage) -> str:
    """Describe a verified package: inputs, outputs, files, parity and provenance."""
    return "\n".join(_lines(package))


def _lines(package: ModelPackage) -> Iterator[str]:
    manifest = package.manifest
    yield f"{manifest.name} ({manifest.variant}), licence {manifest.licence}, in {package.path}"
    yield f"outputs    {', '.join(manifest.outputs)}; {manifest.embed_dim} numbers each"
    yield f"sizes      {_sizes(manifest)}"
    yield f"texts      up to {manifest.max_text_tokens} tokens"
    total_mb = sum(entry.size_bytes for entry in manifest.files.values()) / 1e6
    yield f"files      {len(manifest.files)}, {total_mb:.1f} MB; every SHA-256 verified"
    for name, entry in manifest.files.items():
        yield f"  {entry.size_bytes:>14,} bytes  {entry.sha256[:12]}  {name}"
    yield "parity     graphs against the model in float32, worst over the sizes measured"
    for measured in manifest.parity:
        yield f"  {_parity(measured)}"
    yield "provenance"
    yield from _tree(manifest.provenance, "  ")


def _sizes(manifest: Manifest) -> str:
    buckets = ", ".join(f"{height}x{width}" for height, width in manifest.shape_buckets)
    return (
        f"{manifest.native_size} pixels native, {manifest.min_size} to {manifest.max_size} in "
        f"steps of {manifest.size_multiple}; served {buckets}"
    )


def _parity(parity: ParityEntry) -> str:
    numbers = [f"difference {parity.max_abs_diff:.1e}"]
    shares = {
        "cosine": parity.min_cosine_cls,
        "patch cosine": parity.min_cosine_patches,
        "same mask": parity.mask_agreement,
    }
    numbers += [f"{name} {value:.6f}" for name, value in shares.items() if value is not None]
    if parity.depth_error is not None:
        numbers.append(f"depth {100 * parity.depth_error:.3g} % off")
    if parity.normals_degrees is not None:
        numbers.append(f"normals {parity.normals_degrees:.3g} degrees off")
    failed = "".join(f"; not to be used, {failure}" for failure in parity.failures[:1])
    return f"{parity.file} by {parity.runtime} in {parity.precision}: {', '.join(numbers)}{failed}"


def _tree(value: JsonValue, indent: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{indent}{value}"
        return
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield f"{indent}{key}"
            yield from _tree(inner, indent + "  ")
        else:
            yield f"{indent}{key}: {inner}"


# Exit statuses: an error that the user can fix; the base for signals, plus their number.
FAILED: Final = 1
WRONG_USAGE: Final = 2
SIGNALLED: Final = 128


def run(arguments: Sequence[str]) -> int:
    """Run one command.

    Args:
        arguments: The command line without the program's name.

    Returns:
        The exit status: 0, 1 with a sentence on standard error, or 2 for a wrong command line.

    Raises:
        SystemExit: A signal ends it.
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


def _report(work: Callable[[Reporter], str | None], reporter: Reporter | None = None) -> int:
    """Do the work of a command and report its result; returns the exit status."""
    # Progress bars of libraries would break the lines; downloads report their own.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    reporter = reporter or Lines()
    try:
        result = work(reporter)
    except (ValueError, OSError, ImportError) as error:
        # The user can fix these: the message says how, and a traceback would hide it.
        reporter.say("error", str(error))
        return FAILED
    if result is not None:
        reporter.say("result", result)
    return 0


def end_on_signal() -> None:
    """Turn SIGTERM and Ctrl-C into SystemExit, so that `finally` blocks remove partial files."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)


def _preparer(options: CacheOptions, reporter: Reporter) -> Preparer:
    cache = PackageCache(options.cache_folder)
    return Preparer(cache, partial(reporter.say, "step"), partial(reporter.say, "warning"))


def _described(source: str) -> str:
    """Describe a package; a checkpoint is only named, since its package is verified as it is made.

    Raises:
        ValueError: There is no such model, or its package is broken.
    """
    if isinstance(parse_source(source), PackageSource):
        return describe_package(open_package(source))
    return f"{source} is not a package: `python -m model prepare` converts it"


def _prepared(
    models: str, making: MakingOptions, reporter: Reporter, *, verify: bool = True
) -> list[ModelPackage]:
    """The packages of models, in their order; checkpoints are converted."""
    sources = [split_name(model)[1] for model in split_models(models)]
    if making.dense is not None and len(sources) > 1:
        raise ConversionError("--dense belongs to one model; write base+heads in a list of models")
    preparer, has_gpu = _preparer(making, reporter), bool(this_hardware().gpus)
    return [
        open_package(source, verify=verify)
        if making.dense is None and isinstance(parse_source(source), PackageSource)
        else preparer.prepare(_request(source, making, is_for_gpus=has_gpu), verify=verify)
        for source in sources
    ]


def _request(
    text: str,
    making: MakingOptions,
    *,
    name: str | None = None,
    may_be_package: bool = False,
    is_for_gpus: bool,
) -> ConversionRequest:
    if name is not None:
        check_model_name(name)
    source = parse_checkpoint(text, may_be_package=may_be_package)
    dense = parse_heads(making.dense) if making.dense is not None else None
    if isinstance(source, JoinedSource):
        if dense is not None:
            raise ConversionError(f"{text} has dense heads already; remove --dense")
        name = name or source.name
        base, dense = source.base, source.heads
    else:
        base = source
    if name is None and isinstance(base, FolderSource) and (base.path / MANIFEST_NAME).is_file():
        name = open_package(base.path).manifest.name
    usual = USUAL_PRECISIONS if making.precision == () and is_for_gpus else ()
    return ConversionRequest(
        base=base,
        dense=dense,
        precisions=tuple(dict.fromkeys(("fp32", *making.precision, *usual))),
        may_fail=usual,
        name=name,
        depth_activation=making.depth_activation,
    )


def _end(number: int, frame: FrameType | None) -> None:
    del frame
    raise SystemExit(SIGNALLED + number)


def _end_with_stdin() -> None:
    """Exit when the parent process ends for any reason, which closes its end of the pipe."""
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
