"""Runs the real program on free ports; sends a request over either protocol by the client."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from model.package import STUDENT_FOLDER, ModelPackage, open_package
from tests.promises.servers import photo as smooth_photo
from tests.tools import TOOLS, run
from tipserve_client import Client

# Ends hangs; on a busy machine a start or a conversion may take a minute.
LIMIT_S = 120.0
ROOT = Path(__file__).resolve().parents[2]
Arrays = Mapping[str, NDArray[Any]]


class Program:
    """A running `python -m service`, and its log."""

    def __init__(
        self, log: Path, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> None:
        command = [sys.executable, "-m", "service", "--host=127.0.0.1"]
        command += ["--http-port=0", "--grpc-port=0", "--metrics-port=0", *arguments]
        self._log = log
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                command, stderr=stream, env={**os.environ, **(environment or {})}
            )

    @property
    def log(self) -> list[str]:
        """The lines so far."""
        return self._log.read_text(encoding="utf-8").splitlines()

    def records(self, message: str) -> list[dict[str, Any]]:
        """The log records with this message so far."""
        parsed = [json.loads(line) for line in self.log if re.fullmatch(r"\{.*\}", line)]
        return [record for record in parsed if record["message"] == message]

    def wait_for(self, message: str) -> dict[str, Any]:
        """Wait for the first log record with this message."""
        until = time.monotonic() + LIMIT_S
        while True:
            is_over = self.process.poll() is not None or time.monotonic() > until
            if found := self.records(message):
                return found[0]
            assert not is_over, "\n".join(self.log)
            time.sleep(0.02)

    def end(self) -> int:
        """Send SIGTERM and return the exit status; kills it after a timeout."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


@dataclass(frozen=True)
class Service:
    """A ready program with clients."""

    program: Program
    ports: Mapping[str, int]

    @property
    def rest(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.ports['http']}"

    @property
    def grpc(self) -> str:
        """Its URL of gRPC."""
        return f"grpc://127.0.0.1:{self.ports['grpc']}"

    def over_rest(self, method: str, given: Mapping[str, Any]) -> Arrays:
        """Call a method of the client; returns arrays by the item's number and their name."""
        return ask(self.rest, method, given)

    def over_grpc(self, method: str, given: Mapping[str, Any]) -> Arrays:
        """The same over gRPC."""
        return ask(self.grpc, method, given)

    def over_both(self, method: str, given: Mapping[str, Any]) -> Arrays:
        """The arrays, which are the same over both protocols."""
        rest, rpc = self.over_rest(method, given), self.over_grpc(method, given)
        assert rest.keys() == rpc.keys()
        for name, array in rest.items():
            np.testing.assert_array_equal(array, rpc[name])
        return rest

    def metrics(self) -> str:
        """All metrics."""
        url = f"http://127.0.0.1:{self.ports['metrics']}/metrics"
        return httpx.get(url, timeout=LIMIT_S).text

    def metric(self, name: str) -> float:
        """Sum the samples of a metric."""
        lines = self.metrics().splitlines()
        lines = [line for line in lines if line.split("{")[0].split(" ")[0] == name]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def run_example(
        self,
        kind: str,
        text: str,
        folder: Path,
        *,
        python: str = sys.executable,
        **variables: str,
    ) -> str:
        """Run a block of a page against this service in a folder; returns what it printed.

        Args:
            kind: `python` or `bash`.
            text: The block, with the ports of the documentation.
            folder: Folder, in which the block finds `examples/`, `model/` and the tools.
            python: Interpreter.
            variables: More variables of its environment.
        """
        for name in ("README.md", "examples", "model", ".tools"):
            (folder / name).symlink_to(ROOT / name)
        # curl reads it from CURL_HOME; without it an error status would not fail the example.
        (folder / ".curlrc").write_text("fail-with-body\nsilent\nshow-error\n", encoding="utf-8")
        for name, port in (("8000", "http"), ("8001", "grpc")):
            text = text.replace(f"localhost:{name}", f"127.0.0.1:{self.ports[port]}")
        command = [python, "-c"] if kind == "python" else ["bash", "-euo", "pipefail", "-c"]
        scripts = (str(Path(sys.executable).parent), str(TOOLS), os.environ["PATH"])
        sources = (str(ROOT), str(ROOT / "clients" / "python"))
        paths = {"PATH": os.pathsep.join(scripts), "PYTHONPATH": os.pathsep.join(sources)}
        environment = {**os.environ, **paths, "CURL_HOME": str(folder), **variables}
        done = run(*command, text, cwd=folder, env=environment, timeout_s=2 * LIMIT_S)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()


@pytest.fixture(scope="session")
def run_program(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Program]:
    """Start the program with any arguments; the test stops it."""
    return lambda *given, **options: Program(
        tmp_path_factory.mktemp("program") / "log", *given, **options
    )


@pytest.fixture(scope="session")
def run_service(
    run_program: Callable[..., Program], tiny_package: ModelPackage
) -> Callable[..., Any]:
    """Context that runs the program with the tiny package, or others, and these arguments."""

    @contextmanager
    def run(
        *arguments: str, packages: Sequence[ModelPackage] = (tiny_package,)
    ) -> Iterator[Service]:
        models = ",".join(str(package.path) for package in packages)
        program = run_program(f"--model={models}", *arguments)
        try:
            ready = program.wait_for("ready")
            yield Service(program, {name: ready[name] for name in ("http", "grpc", "metrics")})
        finally:
            assert program.end() == 0, "\n".join(program.log)

    return run


@pytest.fixture(scope="session")
def service(run_service: Callable[..., Any]) -> Iterator[Service]:
    """One service shared by tests that only send requests."""
    with run_service("--max-request-bytes=2000000", "--max-image-bytes=1000000") as running:
        yield running


@pytest.fixture(scope="session")
def bundled_service(run_service: Callable[..., Any]) -> Iterator[Service]:
    """Service with the model that the documentation's examples use."""
    with run_service(packages=(open_package(STUDENT_FOLDER.with_name("bundled")),)) as running:
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
