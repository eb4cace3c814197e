"""Starts the server as its users do, and knows its ports only."""

import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from tests.processes.service_process import end, wait_until_ready

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 60.0  # ends hangs; nothing is measured by it
START_LIMIT_S = 240.0  # of a start, which may convert a checkpoint
TIPSERVE = (sys.executable, "-m", "tipserve_cli")  # the program `tipserve`
SERVICE = (sys.executable, "-m", "service")
LOG_TAIL = 6000


@dataclass(frozen=True)
class Place:
    """Where a server is reached."""

    rest: str  # http://127.0.0.1:1234
    grpc: str  # 127.0.0.1:1235
    metrics: str  # http://127.0.0.1:1236/metrics

    def metric(self, name: str) -> float:
        """Sum of a metric's samples; `name` is as exported, or `name{label="value"`."""
        lines = httpx.get(self.metrics, timeout=LIMIT_S).text.splitlines()
        own = name if "{" in name else (f"{name} ", f"{name}{{")
        return sum(
            float(line.split(" # ")[0].split()[-1]) for line in lines if line.startswith(own)
        )


@dataclass(frozen=True)
class Server(Place):
    """A started server."""

    process: subprocess.Popen[bytes]
    log: Path

    def log_tail(self) -> str:
        """The last lines of the log."""
        return self.log.read_text(errors="replace")[-LOG_TAIL:]


@contextmanager
def start_server(
    *flags: str, env: Mapping[str, str] | None = None, root: Path = ROOT, is_ended: bool = False
) -> Iterator[Server]:
    """Run `python -m service` with these flags on free ports, and end it by SIGTERM.

    Args:
        flags: Of the command line, such as `--model=bundled-student`.
        env: Variables besides those of this process.
        root: Folder of the sources.
        is_ended: Whether the test ends the process, so that its exit status does not matter here.
    """
    with tempfile.TemporaryDirectory() as folder:
        ports_file, log = Path(folder, "ports"), Path(folder, "log")
        command = [*SERVICE, "--host=127.0.0.1", *flags, f"--ports-file={ports_file}"]
        command += ["--http-port=0", "--grpc-port=0", "--metrics-port=0"]
        path = {"PYTHONPATH": os.pathsep.join([str(root), str(root / "clients" / "python")])}
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command, stderr=stream, cwd=root, env={**os.environ, **path, **(env or {})}
            )
        try:
            ready = wait_until_ready(process, ports_file, START_LIMIT_S)
            rpc, metrics = f"127.0.0.1:{ready.grpc_port}", f"http://127.0.0.1:{ready.metrics_port}"
            yield Server(ready.http_url, rpc, f"{metrics}/metrics", process, log)
            status = end(process)
            assert is_ended or status == 0, f"exit status {status}"
        except BaseException as error:
            error.add_note(log.read_text(errors="replace")[-LOG_TAIL:])
            raise
        finally:
            end(process)


def tipserve(*arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the command `tipserve` to its end."""
    return run(*TIPSERVE, *arguments, check=check)


def serve(*flags: str) -> subprocess.CompletedProcess[str]:
    """Run the server to its end, which it reaches by itself if it cannot start."""
    return run(*SERVICE, "--http-port=0", "--grpc-port=0", "--metrics-port=0", *flags, check=False)


def run(
    *command: str | Path, check: bool = True, timeout_s: float = LIMIT_S
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; fails the test with its output if it fails."""
    done = subprocess.run(
        list(map(str, command)),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert not check or done.returncode == 0, done.stdout[-LOG_TAIL:] + done.stderr[-LOG_TAIL:]
    return done


def photo(seed: int = 0, size: tuple[int, int] = (160, 120), file_format: str = "JPEG") -> bytes:
    """A smooth image of this width and height."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(stream, file_format)
    return stream.getvalue()
