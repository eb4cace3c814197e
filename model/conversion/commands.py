"""The command line of conversion: convert, prepare and show."""

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import IO, Final, Literal, Protocol, get_args

from pydantic import JsonValue

from model.conversion.cache import VARIABLE, PackageCache, default_cache
from model.conversion.convert import ConversionRequest
from model.conversion.errors import COMPARING, ConversionError, require
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
from model.graphs import DepthActivation, Precision
from model.manifest import MANIFEST_NAME, Manifest, ParityEntry, check_model_name
from model.package import ModelPackage, open_package
from model.parity import command as check
from model.publication import Repository
from model.runtime.tensorrt import command as engines

SOURCE_HELP: Final = (
    "a transformers folder, a folder with an official pair of .npz files, or a hub id such as "
    "google/tipsv2-b14, optionally with @revision; google/tipsv2-b14-dpt is the model with its "
    "dense heads, and so is a folder x-dpt beside a folder x; base+heads joins others; `convert "
    "--precision` also takes a package and adds graphs to it"
)
MODELS_HELP: Final = (
    "models as the server's --model takes them: packages, `bundled`, checkpoints and hub ids, "
    "separated by commas, each optionally as name=source"
)


def parse_options(arguments: list[str]) -> argparse.Namespace:
    """Read a command line; `command` says which command it is.

    Raises:
        SystemExit: An option that is not known, or `--help`.
    """
    parser = argparse.ArgumentParser(
        prog="python -m model",
        description="Convert released weights into model packages, and manage packages.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text, add in (
        ("convert", "write a model package into a folder", _add_convert),
        (
            "prepare",
            "convert models into the cache, as the server does; print the packages' folders",
            _add_prepare,
        ),
        ("show", "verify and describe packages", _add_models),
        ("check", check.HELP, check.add_arguments),
        ("publish", "copy a verified package to a folder that a server reads", _add_publish),
        ("prune", "remove old published packages that are not in service", _add_prune),
        ("rollback", "make an older published package the current one", _add_rollback),
        ("build-engine", engines.HELP, _add_build_engine),
    ):
        add(commands.add_parser(name, help=text, description=text, allow_abbrev=False))
    return parser.parse_args(arguments)


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help=SOURCE_HELP)
    parser.add_argument("output", type=Path, help="absent, empty, or an older package")
    parser.add_argument(
        "--name", help="name of the model for clients (default: the name of the source)"
    )
    _add_making(parser)
    parser.add_argument("--thorough", action="store_true", help=check.THOROUGH_HELP)


def _add_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", help=MODELS_HELP)


def _add_prepare(parser: argparse.ArgumentParser) -> None:
    _add_models(parser)
    _add_making(parser)
    parser.add_argument(
        "--no-verify",
        dest="verify",
        action="store_false",
        help="do not verify the digests of packages and cached packages",
    )
    parser.add_argument(
        "--report",
        choices=("lines", "json"),
        default="lines",
        help="plain lines, or JSON lines on standard output for programs",
    )
    parser.add_argument(
        "--follow-stdin", action="store_true", help="exit when standard input closes"
    )


def _add_publish(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("package", help="a model package, or `bundled`")
    _add_repository(parser)
    parser.add_argument(
        "--if-empty", action="store_true", help="do nothing if a package is published already"
    )


def _add_prune(parser: argparse.ArgumentParser) -> None:
    _add_repository(parser)
    parser.add_argument("--keep", type=int, required=True, help="number of newest versions to keep")
    parser.add_argument(
        "--in-service",
        nargs="+",
        required=True,
        metavar="VERSION",
        help="versions that replicas serve or a Deployment names, also of other repositories: they "
        "are kept, as are versions with a link",
    )


def _add_rollback(parser: argparse.ArgumentParser) -> None:
    _add_repository(parser)
    parser.add_argument(
        "--to", metavar="VERSION", help="default: the version before the current one"
    )


def _add_repository(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--repository",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="folder with the published versions of one model and the link `current`",
    )


def _add_build_engine(parser: argparse.ArgumentParser) -> None:
    _add_models(parser)
    engines.add_arguments(parser)
    _add_cache(parser)


def _add_making(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dense", metavar="SOURCE", help="dense heads of the source, as base+heads"
    )
    parser.add_argument(
        "--depth-activation",
        choices=get_args(DepthActivation),
        default="linear",
        help="activation after the last convolution of a Scenic depth head, which its zip does not "
        "state (default: %(default)s, as released); a -dpt folder states its own",
    )
    parser.add_argument(
        "--precision",
        action="append",
        choices=get_args(Precision),
        default=[],
        help="additional graphs, next to fp32; may be repeated",
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
    for parity in manifest.parity:
        yield f"  {_parity(parity)}"
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
    # Progress bars of libraries would break the lines; downloads report their own.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    is_for_program = getattr(options, "report", "lines") == "json"
    reporter: Reporter = JsonLines() if is_for_program else Lines()
    try:
        if options.command == "build-engine":
            for package in _prepared(options, reporter):
                engines.run(options, package, options.cache, partial(reporter.say, "step"))
        elif options.command == "check":
            require(COMPARING, purpose="comparing a package with its model")
            check.run(options, lambda text: reporter.say("step", text))
        else:
            reporter.say("result", _result(options, reporter))
    except (ValueError, OSError, ImportError) as error:
        # The user can fix these: the message says how, and a traceback would hide it.
        reporter.say("error", str(error))
        return FAILED
    return 0


def end_on_signal() -> None:
    """Turn SIGTERM and Ctrl-C into SystemExit, so that `finally` blocks remove partial files."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)


def _result(options: argparse.Namespace, reporter: Reporter) -> str:
    if options.command == "show":
        return "\n\n".join(
            _described(split_name(model)[1]) for model in split_models(options.models)
        )
    if options.command in ("publish", "prune", "rollback"):
        return _publish(options, reporter)
    if getattr(options, "follow_stdin", False):
        threading.Thread(target=_end_with_stdin, name="stdin", daemon=True).start()
    if options.command == "convert":
        request = _request(options, options.source)
        return str(_preparer(options, reporter).write(request, options.output).path)
    return "\n".join(str(package.path) for package in _prepared(options, reporter))


def _preparer(options: argparse.Namespace, reporter: Reporter) -> Preparer:
    cache = PackageCache(options.cache.expanduser())
    return Preparer(cache, partial(reporter.say, "step"), partial(reporter.say, "warning"))


def _described(source: str) -> str:
    """Describe a package; a checkpoint is only named, since its package is verified as it is made.

    Raises:
        ValueError: There is no such model, or its package is broken.
    """
    if isinstance(parse_source(source), PackageSource):
        return describe_package(open_package(source))
    return f"{source} is not a package: `python -m model prepare` converts it"


def _prepared(options: argparse.Namespace, reporter: Reporter) -> list[ModelPackage]:
    """The packages of `options.models`, in their order; checkpoints are converted."""
    sources = [split_name(model)[1] for model in split_models(options.models)]
    dense, verify = getattr(options, "dense", None), getattr(options, "verify", True)
    if dense is not None and len(sources) > 1:
        raise ConversionError("--dense belongs to one model; write base+heads in a list of models")
    preparer = _preparer(options, reporter)
    return [
        open_package(source, verify=verify)
        if dense is None and isinstance(parse_source(source), PackageSource)
        else preparer.prepare(_request(options, source), verify=verify)
        for source in sources
    ]


def _publish(options: argparse.Namespace, reporter: Reporter) -> str:
    """Publish or roll back: the folder of the current version; prune: what was removed."""
    repository = Repository(options.repository)
    if options.command == "prune":
        for name in repository.prune(keep=options.keep, in_service=options.in_service):
            reporter.say("step", f"removed {name}")
        return "\n".join(repository.versions())
    if options.command == "rollback":
        return str(repository.roll_back(options.to))
    current = repository.current()
    if options.if_empty and current in repository.versions():
        return str(options.repository / current)
    return str(repository.publish(options.package))


def _request(options: argparse.Namespace, text: str) -> ConversionRequest:
    name = getattr(options, "name", None)
    if name is not None:
        check_model_name(name)
    adds = options.command == "convert" and bool(options.precision)
    source = parse_checkpoint(text, may_be_package=adds)
    heads = getattr(options, "dense", None)
    dense = parse_heads(heads) if heads is not None else None
    if isinstance(source, JoinedSource):
        if dense is not None:
            raise ConversionError(f"{text} has dense heads already; remove --dense")
        name = name or source.name
        base, dense = source.base, source.heads
    else:
        base = source
    if name is None and isinstance(base, FolderSource) and (base.path / MANIFEST_NAME).is_file():
        name = open_package(base.path).manifest.name
    return ConversionRequest(
        base=base,
        dense=dense,
        precisions=tuple(dict.fromkeys(("fp32", *(options.precision or ())))),
        name=name,
        depth_activation=getattr(options, "depth_activation", "linear"),
        is_thorough=getattr(options, "thorough", False),
    )


def _end(number: int, frame: FrameType | None) -> None:
    del frame
    raise SystemExit(SIGNALLED + number)


def _end_with_stdin() -> None:
    """Exit when the parent process ends for any reason, which closes its end of the pipe."""
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
