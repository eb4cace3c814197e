"""Runs the real program on free ports; sends a request over either protocol by the client."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from model.package import ModelPackage
from tests.promises.servers import photo as smooth_photo
from tipserve_client import Client

# Ends hangs; on a busy machine a start or a conversion may take a minute.
LIMIT_S = 120.0
Arrays = Mapping[str, NDArray[Any]]


class Program:
    """A running `python -m service`; a thread reads its log."""

    def __init__(
        self,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        program: Sequence[str] = ("-m", "service"),
    ) -> None:
        command = [sys.executable, *program, "--host=127.0.0.1"]
        command += ["--http-port=0", "--grpc-port=0", "--metrics-port=0", *arguments]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self.log: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._passed: list[dict[str, Any]] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def wait_for(self, message: str) -> dict[str, Any]:
        """Wait for the next log record with this message, in any order among other messages.

        The processes of one server write to the log each in its own time.
        """
        for passed in self._passed:
            if passed["message"] == message:
                self._passed.remove(passed)
                return passed
        while (line := self._lines.get(timeout=LIMIT_S)) is not None:
            record: dict[str, Any] = json.loads(line) if line.startswith("{") else {}
            if record.get("message") == message:
                return record
            if record:
                self._passed.append(record)
        raise AssertionError("the program ended first:\n" + "".join(self.log))

    def records(self, message: str) -> list[dict[str, Any]]:
        """The log records with this message so far."""
        parsed = [json.loads(line) for line in tuple(self.log) if line.startswith("{")]
        return [record for record in parsed if record["message"] == message]

    def end(self) -> int:
        """Send SIGTERM and return the exit status; kills it after a timeout."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        self.reader.join(LIMIT_S)
        return status

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stream:
            for line in stream:
                self.log.append(line)
                self._lines.put(line)
        self._lines.put(None)


@dataclass(frozen=True)
class Service:
    """A ready program with clients."""

    program: Program
    ports: Mapping[str, int]

    def over_rest(self, method: str, given: Mapping[str, Any]) -> Arrays:
        """Call a method of the client; returns arrays by the item's number and their name."""
        return ask(f"http://127.0.0.1:{self.ports['http']}", method, given)

    def over_grpc(self, method: str, given: Mapping[str, Any]) -> Arrays:
        """The same over gRPC."""
        return ask(f"grpc://127.0.0.1:{self.ports['grpc']}", method, given)

    def metrics(self) -> str:
        """Return all metrics, parsed as Prometheus does."""
        url = f"http://127.0.0.1:{self.ports['metrics']}/metrics"
        return httpx.get(url, timeout=LIMIT_S).text

    def metric(self, name: str) -> float:
        """Sum the samples of a metric."""
        lines = self.metrics().splitlines()
        lines = [line for line in lines if line.split("{")[0].split(" ")[0] == name]
        return sum(float(line.rpartition(" ")[2]) for line in lines)


@pytest.fixture(scope="session")
def run_service(
    tiny_package: ModelPackage,
) -> Callable[..., Any]:
    """Context that runs the program with the tiny package, or others, and these arguments."""

    @contextmanager
    def run(
        *arguments: str, packages: Sequence[ModelPackage] = (tiny_package,), **options: Any
    ) -> Iterator[Service]:
        models = ",".join(str(package.path) for package in packages)
        program = Program(f"--model={models}", *arguments, **options)
        try:
            ready = program.wait_for("ready")
            yield Service(program, {name: ready[name] for name in ("http", "grpc", "metrics")})
        finally:
            assert program.end() == 0, "".join(program.log)

    return run


@pytest.fixture(scope="session")
def run_program() -> type[Program]:
    """Start the program with any arguments; the fixture stops it."""
    return Program


@pytest.fixture(scope="session")
def service(run_service: Callable[..., Any]) -> Iterator[Service]:
    """One service shared by tests that only send requests."""
    with run_service("--max-request-bytes=2000000", "--max-image-bytes=1000000") as running:
        yield running


@pytest.fixture(scope="session")
def photo() -> Callable[..., bytes]:
    """Create a smooth JPEG by seed and size."""

    def make(seed: int = 0, size: tuple[int, int] = (90, 60), file_format: str = "JPEG") -> bytes:
        return smooth_photo(seed, size, file_format)

    return make


def ask(url: str, method: str, given: Mapping[str, Any]) -> Arrays:
    """Call a method of the client by its name."""
    with Client(url, timeout_s=LIMIT_S) as client:
        items = getattr(client, method)(**given)
    return {
        f"{index}.{name}": array
        for index, item in enumerate(items)
        for name, array in arrays_of(method, item).items()
    }


def arrays_of(method: str, item: Any) -> dict[str, Any]:
    """The arrays of one result."""
    if isinstance(item, np.ndarray):
        return {{"embed_texts": "embedding"}.get(method, method): item}
    if isinstance(item, list):
        names = ("label", "probability", "cosine")
        return {name: np.array([getattr(one, name) for one in item]) for name in names}
    found = {field.name: getattr(item, field.name) for field in fields(item)}
    others = ("classes", "background_share", "instances")
    return {n: array for n, array in found.items() if array is not None and n not in others}
