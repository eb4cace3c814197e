"""Peak memory and CPU time of each step of a conversion.

Claim: a conversion without dense heads takes at most 2.2 GB in B/14's size.

Run: python -m benchmarks.conversion_memory CHECKPOINT [OUTPUT]
CHECKPOINT is what `python -m model convert` takes, as `python -m benchmarks.official` writes it.

`resident` counts all pages of the process, also those of mapped files, which the kernel can drop at
any time; `anonymous` counts the others. The line of a step has the highest values within it.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

INTERVAL_S: Final = 0.01
FIELDS: Final = ("VmRSS", "RssAnon")


def memory_mb(pid: int) -> dict[str, float]:
    """`FIELDS` of a process in MB; empty when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines)
    return {
        name.rstrip(":"): int(rest[0]) * 1024 / 1e6
        for name, *rest in fields
        if name.rstrip(":") in FIELDS
    }


def cpu_s(pid: int) -> float:
    """CPU seconds of all threads of a process."""
    values = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(values[11]) + int(values[12])) / os.sysconf("SC_CLK_TCK")


class Sampler(threading.Thread):
    """Keeps the highest memory of a process since it was last asked."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._lock = threading.Lock()
        self._highest = dict.fromkeys(FIELDS, 0.0)
        self.peak = dict.fromkeys(FIELDS, 0.0)

    def run(self) -> None:
        """Sample until the process has ended."""
        while found := memory_mb(self._pid):
            with self._lock:
                for name, value in found.items():
                    self._highest[name] = max(self._highest[name], value)
                    self.peak[name] = max(self.peak[name], value)
            time.sleep(INTERVAL_S)

    def take(self) -> str:
        """The highest values since the last call."""
        with self._lock:
            highest, self._highest = self._highest, dict.fromkeys(FIELDS, 0.0)
        return told(highest)


def told(highest: dict[str, float]) -> str:
    """Both values as text."""
    resident, anonymous = (highest[name] for name in FIELDS)
    return f"resident {resident:6,.0f} MB, anonymous {anonymous:6,.0f} MB"


def steps(child: "subprocess.Popen[str]") -> Iterator[str]:
    """Lines of progress, and a last one when the process ends."""
    assert child.stderr is not None
    for line in child.stderr:
        yield line.strip()
    yield "end"


def measure(checkpoint: str, output: Path) -> None:
    """Convert in a child process and print a line for each step."""
    command = [sys.executable, "-m", "model", "convert", checkpoint, str(output)]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as child:
        sampler = Sampler(child.pid)
        sampler.start()
        step, before_s = "start", 0.0
        for following in steps(child):
            # A zombie keeps its times until it is waited for.
            now_s = cpu_s(child.pid)
            print(f"{sampler.take()}, {now_s - before_s:6.1f} CPU s: {step}", flush=True)
            step, before_s = following, now_s
    print(f"{told(sampler.peak)}, {before_s:6.1f} CPU s: all, with exit status {child.returncode}")


def main() -> None:
    """Convert one checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="a folder, or base+heads")
    parser.add_argument("output", type=Path, nargs="?", help="keep the package in this folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(options.checkpoint, options.output or Path(folder) / "package")


if __name__ == "__main__":
    main()
