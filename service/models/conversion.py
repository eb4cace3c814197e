"""Model names to packages: bundled, a folder, or a checkpoint converted in a child process."""

import json
import logging
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from threading import Event
from typing import IO, Final, Self

from model.conversion.errors import SourceError
from model.conversion.source import (
    SERVED_NAME,
    CheckpointSource,
    JoinedSource,
    PackageSource,
    parse_source,
    split_name,
)
from model.graphs import ExportPrecision
from model.manifest import MANIFEST_NAME
from model.package import BUNDLED, ModelPackage, PackageError, open_package
from service.errors import InvalidRequest, ModelNotFound
from service.lanes.batch_queue import stopping_error
from service.machine import python_command

# Callers may name packages below one folder only: no absolute path, no `..`, nothing hidden.
PACKAGE_NAME: Final = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)*", re.ASCII)
MAX_NAME_CHARS: Final = 200
# Interval of checks for cancellation, and time for a terminated conversion to remove its files.
POLL_S: Final = 0.2
CLEAR_UP_S: Final = 5.0
NUM_KEPT_LINES: Final = 30
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model to load.

    Attributes:
        folder: `bundled`, `bundled-student`, or a folder with a model package; with a cache also a
            checkpoint's folder, a hub id, or `base+heads` of both kinds.
        name: Name to serve it under; None is the package's name.
        cache: Folder of converted packages; None if nothing may be converted.
        precisions: Graphs to export in addition to fp32.
        is_background: Whether other models answer meanwhile and need the processors.
        num_loading: Processes that load it at the same time, and so share the free memory.
        cancelled: Set to cancel the load.
    """

    folder: str
    name: str | None = None
    cache: Path | None = None
    precisions: tuple[ExportPrecision, ...] = ()
    is_background: bool = False
    num_loading: int = 1
    cancelled: Event = field(default_factory=Event, compare=False)

    @classmethod
    def from_setting(
        cls, text: str, cache: Path, precisions: tuple[ExportPrecision, ...] = ()
    ) -> Self:
        """Read one model of `--model`: a source, or `name=source`."""
        name, folder = split_name(text)
        return cls(folder, name, cache=cache, precisions=precisions)

    def checkpoint(self) -> CheckpointSource | JoinedSource | None:
        """The checkpoint to convert; None for a package.

        Raises:
            PackageError: There is no such model.
        """
        if self.cache is None:
            return None
        try:
            source = parse_source(self.folder)
        except SourceError as error:
            raise PackageError(str(error)) from error
        return None if isinstance(source, PackageSource) else source

    def served_name(self) -> str:
        """The name to serve it under; converts nothing.

        Raises:
            PackageError: There is no such model, or its package is broken.
        """
        if self.name is not None:
            return self.name
        checkpoint = self.checkpoint()
        if checkpoint is not None:
            return checkpoint.name
        return open_package(self.folder, verify=False).manifest.name

    def check(self) -> None:
        """Check for cancellation, between the steps of a load.

        Raises:
            Unavailable: The load is cancelled, because the server stops.
        """
        if self.cancelled.is_set():
            raise stopping_error()

    def without_paths(self, text: str) -> str:
        """A reason without the server's paths: the package's folder becomes its last part."""
        folder = BUNDLED.get(self.folder, Path(self.folder))
        text = text.replace(str(folder), folder.name)
        return text if self.cache is None else text.replace(str(self.cache), "the cache")


def check_names(sources: Iterable[ModelSource]) -> None:
    """Refuse two models of one name, before the second is converted for hours.

    Raises:
        ValueError: Two models have one name; the message says how to rename one.
        PackageError: A source is no model.
    """
    folders: dict[str, str] = {}
    for source in sources:
        name = source.served_name()
        if name in folders:
            first, second = folders[name], source.folder
            raise ValueError(
                f"{first} and {second} would both be served as {name!r}; give one of them another "
                f"name, as in --model {first},other={second}"
            )
        folders[name] = source.folder


def check_model_name(name: str) -> None:
    """Check the name of a model.

    Raises:
        InvalidRequest: It is too long, or has other characters than letters, digits, `.`, `_`, `-`.
    """
    if len(name) > MAX_NAME_CHARS or not SERVED_NAME.fullmatch(name):
        raise InvalidRequest(
            "A model's name has letters, digits, '.', '_' and '-', begins with a letter or digit, "
            f"and has at most {MAX_NAME_CHARS} characters.",
            param="name",
        )


def find_package(repository: Path | None, package: str) -> str:
    """The folder of a package below the repository, with links resolved.

    Raises:
        InvalidRequest: There is no repository, or the name is invalid.
        ModelNotFound: The repository has no such package.
    """
    if repository is None:
        raise InvalidRequest(
            "This server has no folder to load from; start it with --model-repository.",
            code="no_repository",
            param="parameters.package",
        )
    if len(package) > MAX_NAME_CHARS or not PACKAGE_NAME.fullmatch(package):
        raise InvalidRequest(
            "A package is named by its folder below the repository, such as 'student' or "
            "'students/second'.",
            param="parameters.package",
        )
    root = repository.resolve()
    folder = (root / package).resolve()
    if not _is_package(root, folder):
        raise ModelNotFound(
            f"The repository has no package {package!r}; POST /v2/repository/index lists them.",
            code="package_not_found",
            param="parameters.package",
        )
    return str(folder)


def list_packages(repository: Path | None) -> list[str]:
    """Names of the packages directly below the repository."""
    if repository is None or not repository.is_dir():
        return []
    root = repository.resolve()
    folders = (path for path in root.iterdir() if PACKAGE_NAME.fullmatch(path.name))
    return sorted(path.name for path in folders if _is_package(root, path.resolve()))


def _is_package(root: Path, folder: Path) -> bool:
    return folder.is_relative_to(root) and (folder / MANIFEST_NAME).is_file()


def open_source(source: ModelSource) -> ModelPackage:
    """Open and verify a package; a checkpoint is converted first unless the cache has it.

    Raises:
        PackageError: There is no such model, it cannot be converted, or its package is broken.
        Unavailable: The load was cancelled.
    """
    checkpoint = source.checkpoint()
    if checkpoint is None:
        return open_package(source.folder)
    name = source.name or checkpoint.name
    folder = _prepare(source, name, checkpoint, verify=False)
    try:
        package = open_package(folder)
    except PackageError as error:
        logger.warning("a converted package is broken", extra={"fields": {"reason": str(error)}})
        package = open_package(_prepare(source, name, checkpoint, verify=True))
    # The cached package has the name that was requested first.
    manifest = package.manifest.model_copy(update={"name": name})
    return ModelPackage(path=package.path, manifest=manifest)


def _prepare(
    source: ModelSource, name: str, checkpoint: CheckpointSource | JoinedSource, *, verify: bool
) -> Path:
    options = [f"--cache={source.cache}", "--report=json", "--follow-stdin"]
    options += [f"--precision={precision}" for precision in source.precisions]
    if not verify:
        options.append("--no-verify")
    return run_conversion(source, name, ["-m", "model", "prepare", *options, "--", str(checkpoint)])


def run_conversion(source: ModelSource, name: str, program: Sequence[str]) -> Path:
    """Run a conversion program, log its reports, and return the package.

    It is a process of its own because a conversion imports torch and takes gigabytes, which are
    free again when the process ends.

    Args:
        source: What is loaded; its cancellation ends the program.
        name: Of the model, for the log.
        program: Arguments of Python.

    Raises:
        PackageError: The conversion failed; the message is the program's.
        Unavailable: The load was cancelled.
    """
    began, package = time.monotonic(), None
    with TemporaryFile() as output, _started(program, output) as process:
        watch = threading.Thread(target=_end_if_cancelled, args=(process, source), daemon=True)
        watch.start()
        assert process.stdout is not None
        try:
            for kind, text in (report for line in process.stdout for report in _reports(line)):
                if kind == "error":
                    raise PackageError(text)
                if kind == "result":
                    package = Path(text)
                else:
                    _log(kind, text, name, time.monotonic() - began)
            status = process.wait()
        finally:
            _end(process)
            watch.join()
            source.check()
        if package is None or status != 0:
            raise PackageError(_ended(source, status, output))
    return package


def _started(program: Sequence[str], output: IO[bytes]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        python_command(*program),
        # Never written to: the program ends when it closes, so also when this process dies.
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=output,
        text=True,
        # Ctrl-C must not reach the program: the server terminates it in order.
        process_group=0,
    )


def _end(process: "subprocess.Popen[str]") -> None:
    """End a program; it gets some time to remove its files, or else the next one does."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(CLEAR_UP_S)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def _end_if_cancelled(process: "subprocess.Popen[str]", source: ModelSource) -> None:
    while process.poll() is None:
        if source.cancelled.wait(POLL_S):
            _end(process)


def _reports(line: str) -> Iterable[tuple[str, str]]:
    """Read the reports of a line; other output gives none."""
    try:
        report = json.loads(line)
    except ValueError:
        return ()
    return ((k, str(v)) for k, v in report.items()) if isinstance(report, dict) else ()


def _log(kind: str, text: str, name: str, seconds: float) -> None:
    fields = {"model": name, "step": text, "seconds": round(seconds, 1)}
    level = logging.WARNING if kind == "warning" else logging.INFO
    logger.log(level, "preparing", extra={"fields": fields})


def _ended(source: ModelSource, status: int, output: IO[bytes]) -> str:
    """Why a program ended without a report."""
    if status == -signal.SIGKILL:
        return (
            f"the conversion of {source.folder} was killed, most likely out of memory: it "
            "needs several times the size of the weights. Convert where there is more memory "
            "(`python -m model convert`) and serve the folder that it writes"
        )
    output.seek(0)
    lines = output.read().decode(errors="replace").splitlines()[-NUM_KEPT_LINES:]
    text = "\n".join(lines).strip() or "nothing"
    return f"the conversion of {source.folder} ended with status {status}; output: {text}"
