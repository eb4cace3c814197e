"""Starts a service on free ports, measures its CPU time, and stops it."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

START_LIMIT_S = 120.0
STOP_LIMIT_S = 60.0
ASK_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class RunningService:
    """A ready service on loopback."""

    pid: int
    http_port: int
    grpc_port: int
    metrics_port: int
    process: subprocess.Popen[bytes]

    @property
    def http_url(self) -> str:
        """Base URL of REST."""
        return f"http://127.0.0.1:{self.http_port}"

    def cpu_s(self) -> float:
        """CPU seconds used by the process so far, on all threads."""
        # Linux's clock id of another process's CPU time, see clock_getcpuclockid(3).
        return time.clock_gettime(~self.pid << 3 | 2)

    def metric(self, name: str, **labels: str) -> float:
        """Sum a metric over all series with these labels; 0 if there are none."""
        lines = httpx.get(f"http://127.0.0.1:{self.metrics_port}/metrics").text.splitlines()
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        samples = [
            line
            for line in lines
            if line.split("{")[0].split(" ")[0] == name and all(pair in line for pair in wanted)
        ]
        return sum(float(line.rpartition(" ")[2]) for line in samples)


def end(process: subprocess.Popen[bytes]) -> int:
    """Send SIGTERM, and SIGKILL after a time limit; returns the exit status."""
    process.terminate()  # does nothing to one that has ended
    try:
        return process.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def peak_mib(pid: int, *, reset: bool = False) -> float:
    """Peak resident memory of a process; `reset` starts from what it holds now."""
    if reset:
        Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


@contextmanager
def running_service(
    *arguments: str, log_path: Path | None = None, start_limit_s: float = START_LIMIT_S
) -> Iterator[RunningService]:
    """Run `python -m service` with these arguments and stop it by SIGTERM.

    Args:
        arguments: Flags, without those for ports.
        log_path: File for its log; None discards it.
        start_limit_s: Time until it must be ready.

    Raises:
        RuntimeError: The service ended or was not ready in time.
    """
    with tempfile.TemporaryDirectory() as folder:
        ports_file = Path(folder) / "ports.json"
        ports = ["--http-port=0", "--grpc-port=0", "--metrics-port=0"]
        command = [sys.executable, "-m", "service", *ports, f"--ports-file={ports_file}"]
        with (log_path or Path(folder) / "service.log").open("w+b") as log:
            process = subprocess.Popen([*command, *arguments], stdout=log, stderr=subprocess.STDOUT)
            try:
                yield wait_until_ready(process, ports_file, start_limit_s)
            finally:
                end(process)


def wait_until_ready(
    process: subprocess.Popen[bytes], ports_file: Path, limit_s: float = START_LIMIT_S
) -> RunningService:
    """Poll the readiness route, at the port for metrics, until the status is 200.

    Raises:
        RuntimeError: The service ended or was not ready in time.
    """
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the service ended with {process.returncode}")
        if ports_file.exists():
            ports = json.loads(ports_file.read_text(encoding="utf-8"))
            service = RunningService(
                process.pid, ports["http"], ports["grpc"], ports["metrics"], process
            )
            ready = f"http://127.0.0.1:{service.metrics_port}/v2/health/ready"
            with suppress(httpx.HTTPError):
                if httpx.get(ready, timeout=ASK_LIMIT_S).status_code == 200:
                    return service
        time.sleep(0.05)
    raise RuntimeError(f"the service was not ready within {limit_s:.0f} s")
