"""Starts the server as its users do, on free ports of this machine."""

import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from tests import tools

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 60.0  # ends hangs; nothing is measured by it
START_LIMIT_S = 600.0  # of a start, which may convert a checkpoint or build engines
TIPSERVE = (sys.executable, "-m", "tipserve_cli")  # the program `tipserve`
SERVICE = (sys.executable, "-m", "service", "--http-port=0", "--grpc-port=0", "--metrics-port=0")
LOG_TAIL = 6000


@dataclass(frozen=True)
class Place:
    """Where a server or a proxy is reached: its ports by the names http, grpc and metrics."""

    ports: Mapping[str, int]

    @property
    def rest(self) -> str:
        """URL of REST."""
        return f"http://127.0.0.1:{self.ports['http']}"

    @property
    def grpc(self) -> str:
        """Address of gRPC, without a scheme."""
        return f"127.0.0.1:{self.ports['grpc']}"

    @property
    def metrics(self) -> str:
        """URL of the metrics."""
        return f"http://127.0.0.1:{self.ports['metrics']}/metrics"

    @property
    def ready(self) -> str:
        """URL of the probe of readiness, which no proxy is in front of."""
        return self.metrics.replace("/metrics", "/v2/health/ready")

    def metric(self, name: str, **labels: str) -> float:
        """Sum of a metric's samples with these labels; 0 if there are none."""
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        return sum(
            float(line.split(" # ")[0].split()[-1])
            for line in httpx.get(self.metrics, timeout=LIMIT_S).text.splitlines()
            if re.split("[{ ]", line)[0] == name and all(pair in line for pair in wanted)
        )


@dataclass(frozen=True)
class Server(Place):
    """A started server; its ports are known once it is ready."""

    ports: dict[str, int]
    process: subprocess.Popen[bytes]
    log: Path

    def log_tail(self) -> str:
        """The last lines of the log."""
        return self.log.read_text(errors="replace")[-LOG_TAIL:]

    def records(self, message: str) -> list[dict[str, Any]]:
        """The log records with this message so far."""
        lines = self.log.read_text(encoding="utf-8").splitlines()
        parsed = [json.loads(line) for line in lines if re.fullmatch(r"\{.*\}", line)]
        return [record for record in parsed if record["message"] == message]

    def wait_for(self, message: str) -> dict[str, Any]:
        """Wait for the first log record with this message."""
        until = time.monotonic() + START_LIMIT_S
        while True:
            is_over = self.process.poll() is not None or time.monotonic() > until
            if found := self.records(message):
                return found[0]
            assert not is_over, self.log_tail()
            time.sleep(0.02)

    def cpu_s(self) -> float:
        """CPU seconds of all its threads so far."""
        # Linux's clock id of another process's CPU time, see clock_getcpuclockid(3).
        return time.clock_gettime(~self.process.pid << 3 | 2)


@contextmanager
def start_server(
    *flags: str,
    env: Mapping[str, str] | None = None,
    root: Path = ROOT,
    log: Path | None = None,
    waits: bool = True,
    is_ended: bool = False,
) -> Iterator[Server]:
    """Run `python -m service` with these flags on free ports, and end it by SIGTERM.

    Args:
        flags: Of the command line, such as `--model=bundled-student`.
        env: Variables besides those of this process.
        root: Folder of the sources.
        log: File that keeps the log; without it the log goes with the server.
        waits: Whether the block begins when the server is ready.
        is_ended: Whether the test ends the process, so that its exit status does not matter here.
    """
    with tempfile.TemporaryDirectory() as folder:
        log, ports = log or Path(folder, "log"), Path(folder, "ports")
        command = [*SERVICE, "--host=127.0.0.1", f"--ports-file={ports}", *flags]
        path = {"PYTHONPATH": os.pathsep.join([str(root), str(root / "clients" / "python")])}
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command, stderr=stream, cwd=root, env={**os.environ, **path, **(env or {})}
            )
        server = Server({}, process, log)
        try:
            if waits:
                wait_until_ready(server, ports)
            yield server
            status = end(process)
            assert is_ended or status == 0, f"exit status {status}"
        except BaseException as error:
            end(process)
            error.add_note(server.log_tail())
            raise
        finally:
            end(process)


def wait_until_ready(server: Server, ports: Path) -> None:
    """Read the ports, and poll the probe until it says that the server is ready."""
    until = time.monotonic() + START_LIMIT_S
    while True:
        assert server.process.poll() is None, f"exit status {server.process.returncode}"
        assert time.monotonic() < until, "the server is not ready in time"
        if ports.exists():
            server.ports.update(json.loads(ports.read_text(encoding="utf-8")))
            with suppress(httpx.HTTPError):
                if httpx.get(server.ready, timeout=LIMIT_S).status_code == 200:
                    return
        time.sleep(0.05)


def end(process: subprocess.Popen[Any]) -> int:
    """Send SIGTERM, and SIGKILL after a time limit; returns the exit status."""
    process.terminate()  # does nothing to one that has ended
    try:
        return process.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def memory_mib(pid: int, name: str = "VmRSS") -> float:
    """Resident memory of a process, or by the name VmHWM its peak."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.partition(f"{name}:")[2].split()[0]) / 1024


def peak_mib(pid: int, *, reset: bool = False) -> float:
    """Peak resident memory of a process; `reset` starts from what it holds now."""
    if reset:
        Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")
    return memory_mib(pid, "VmHWM")


def tipserve(*arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the command `tipserve` to its end."""
    return run(*TIPSERVE, *arguments, check=check)


def serve(*flags: str) -> subprocess.CompletedProcess[str]:
    """Run the server to its end, which it reaches by itself if it cannot start."""
    return run(*SERVICE, *flags, check=False)


def run(
    *command: str | Path, check: bool = True, timeout_s: float = LIMIT_S
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; fails the test with its output if it fails."""
    done = tools.run(*command, cwd=ROOT, timeout_s=timeout_s)
    assert not check or done.returncode == 0, done.stdout[-LOG_TAIL:] + done.stderr[-LOG_TAIL:]
    return done


def photo(seed: int = 0, size: tuple[int, int] = (160, 120), file_format: str = "JPEG") -> bytes:
    """A smooth image of this width and height."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(stream, file_format)
    return stream.getvalue()
