"""How the attacked process fares: alive, ready, memory, descriptors, threads; and a slope."""

import os
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

MIB: Final = 1024 * 1024
READY_LIMIT_S: Final = 30.0
INTERVAL_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One look: seconds since the start, MiB resident, open descriptors, threads."""

    at_s: float
    rss_mib: float
    num_descriptors: int
    num_threads: int


@dataclass(frozen=True, slots=True)
class Slope:
    """A line through the memory over time, in MiB a minute."""

    mib_per_min: float
    standard_error: float

    @property
    def is_within_noise(self) -> bool:
        """Whether it is no more than two standard errors above zero."""
        return self.mib_per_min <= 2 * self.standard_error


@dataclass(slots=True)
class VitalSigns:
    """Looks at one process and its readiness, once a second, in a thread of its own."""

    pid: int
    http_port: int
    samples: list[Sample] = field(default_factory=list)
    num_not_ready: int = 0
    _begun: float = field(default_factory=time.monotonic)

    def watch_until(self, stop: threading.Event) -> None:
        """Look until told to stop, or until there is no process."""
        while self.is_alive:
            self.samples.append(self.look())
            if not self.is_ready():
                self.num_not_ready += 1
            if stop.wait(INTERVAL_S):
                return

    def look(self) -> Sample:
        """How it is now.

        Raises:
            OSError: There is no such process any more.
        """
        process = Path(f"/proc/{self.pid}")
        pages = int((process / "statm").read_text().split()[1])
        rss_mib = pages * os.sysconf("SC_PAGE_SIZE") / MIB
        descriptors = len(list((process / "fd").iterdir()))
        threads = len(list((process / "task").iterdir()))
        return Sample(time.monotonic() - self._begun, rss_mib, descriptors, threads)

    @property
    def is_alive(self) -> bool:
        """Whether the process runs; a zombie does not."""
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        return state not in "ZX"

    def is_ready(self) -> bool:
        """Whether the process says that it takes requests."""
        url = f"http://127.0.0.1:{self.http_port}/v2/health/ready"
        try:
            with urllib.request.urlopen(url, timeout=READY_LIMIT_S) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def slope(self, after_s: float) -> Slope:
        """The memory's trend after a warm-up, by least squares.

        Samples a second apart are much alike, which would make the line look surer than it is: the
        standard error counts only as many of them as are worth that many independent ones, by the
        correlation of each residual with the next.
        """
        kept = [sample for sample in self.samples if sample.at_s >= after_s]
        minutes = np.array([sample.at_s for sample in kept]) / 60
        rss = np.array([sample.rss_mib for sample in kept])
        if len(kept) < 10:
            return Slope(float("nan"), float("inf"))
        centred = minutes - minutes.mean()
        spread = float((centred**2).sum())
        slope = float((centred * rss).sum() / spread)
        residuals = rss - rss.mean() - slope * centred
        before, after = residuals[:-1], residuals[1:]
        alike = float((before * after).sum() / max(float((before**2).sum()), 1e-9))
        alike = min(max(alike, 0.0), 0.99)
        worth = max(3.0, len(kept) * (1 - alike) / (1 + alike))
        variance = float((residuals**2).sum()) / len(kept) * worth / (worth - 2)
        return Slope(slope, float(np.sqrt(variance / (spread / len(kept) * worth))))
