"""Has what is no package yet made into one, by a program of its own: `python -m model prepare`.

That program imports torch and fills gigabytes; when it ends, all of it is given back. This process
reads what it says, line by line, and ends it where nobody waits any more.
"""

import json
import logging
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final

from model.conversion.cache import PackageCache
from model.conversion.errors import CacheError
from model.conversion.source import FolderSource, HubSource
from model.package import ModelPackage, PackageError, open_package
from service.models.model_source import ModelSource

# How soon a cancelled conversion is noticed, and how long it may take to clear up behind itself.
POLL_S: Final = 0.2
CLEAR_UP_S: Final = 5.0
NUM_KEPT_LINES: Final = 30

logger = logging.getLogger(__name__)


def open_source(source: ModelSource) -> ModelPackage:
    """Open a package and verify it; what is none is converted first, or found converted.

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
    # A cached package is called as what asked for it first.
    manifest = package.manifest.model_copy(update={"name": name})
    return ModelPackage(path=package.path, manifest=manifest)


def _prepare(
    source: ModelSource, name: str, checkpoint: FolderSource | HubSource, *, verify: bool
) -> Path:
    options = [f"--cache={source.cache}", "--report=json", "--follow-stdin"]
    options += [f"--precision={precision}" for precision in source.precisions]
    if not verify:
        options.append("--no-verify")
    conversion = Conversion(["prepare", *options, "--", str(checkpoint)])
    try:
        with conversion:
            return conversion.wait(source, name)
    finally:
        if conversion.was_killed:
            _clear_up_behind(source)


def _clear_up_behind(source: ModelSource) -> None:
    """Remove what a killed conversion could not: up to several times the weights."""
    assert source.cache is not None
    try:
        PackageCache(source.cache).remove_leftovers()
    except CacheError as error:
        logger.warning("a conversion's files stay", extra={"fields": {"reason": str(error)}})


class Conversion:
    """The program while it runs; leaving the `with` block ends it.

    Args:
        arguments: Of the program.
        program: What Python runs.
    """

    def __init__(
        self, arguments: Sequence[str], *, program: Sequence[str] = ("-m", "model")
    ) -> None:
        self._began = time.monotonic()
        # What keeps the server's working folder off its path keeps it off this one's.
        safe_path = ["-P"] if sys.flags.safe_path else []
        self._process = subprocess.Popen(
            [sys.executable, *safe_path, *program, *arguments],
            # Nothing is ever written: it closes when this process ends, and the program with it.
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Ctrl-C is for the server, which then ends the program in its own way.
            process_group=0,
        )
        self._reports: queue.Queue[str | None] = queue.Queue()
        self._last_lines: deque[str] = deque(maxlen=NUM_KEPT_LINES)
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._readers = [
            threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True),
            threading.Thread(target=self._keep, args=(self._process.stderr,), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        """The program's process."""
        return self._process.pid

    @property
    def was_killed(self) -> bool:
        """Whether it ended without a chance to clear up."""
        return self._process.returncode == -signal.SIGKILL

    def __enter__(self) -> "Conversion":
        return self

    def __exit__(self, *_: object) -> None:
        """End the program, if it has not ended, and let it clear up if it can."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(CLEAR_UP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
        for reader in self._readers:
            reader.join()
        assert self._process.stdin is not None
        self._process.stdin.close()

    def wait(self, source: ModelSource, name: str) -> Path:
        """Log what the program says until it has a package.

        Raises:
            PackageError: It has none; the message is the program's own.
            Unavailable: The load was cancelled.
        """
        package: Path | None = None
        while (line := self._next(source)) is not None:
            for kind, text in _parsed(line).items():
                if kind == "result":
                    package = Path(text)
                elif kind == "error":
                    raise PackageError(text)
                else:
                    self._log(kind, text, name)
        status = self._process.wait()
        if package is None or status != 0:
            raise PackageError(self._ended(source, status))
        return package

    def _next(self, source: ModelSource) -> str | None:
        """The next line; None after the last."""
        while True:
            source.check()
            try:
                return self._reports.get(timeout=POLL_S)
            except queue.Empty:
                continue

    def _log(self, kind: str, text: str, name: str) -> None:
        fields = {
            "model": name,
            "step": text,
            "seconds": round(time.monotonic() - self._began, 1),
        }
        level = logging.WARNING if kind == "warning" else logging.INFO
        logger.log(level, "preparing", extra={"fields": fields})

    def _ended(self, source: ModelSource, status: int) -> str:
        if status == -signal.SIGKILL:
            return (
                f"the conversion of {source.folder} was killed, most likely for want of memory, of "
                "which it takes several times the weights; convert where there is more "
                "(`python -m model convert`) and serve the folder that it writes"
            )
        said = "".join(self._last_lines).strip() or "nothing"
        return f"the conversion of {source.folder} ended with status {status}; it said: {said}"

    def _read(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self._reports.put(line)
        self._reports.put(None)

    def _keep(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self._last_lines.append(line)


def _parsed(line: str) -> dict[str, str]:
    """A line of the program's report; what is none is nothing."""
    try:
        report = json.loads(line)
    except ValueError:
        return {}
    return {str(k): str(v) for k, v in report.items()} if isinstance(report, dict) else {}
