"""Observes the attacked process: alive, ready, memory, descriptors and threads."""

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
    """Seconds since the start, resident memory, open descriptors and threads."""

    at_s: float
    rss_mib: float
    num_descriptors: int
    num_threads: int


@dataclass(frozen=True, slots=True)
class Slope:
    """The trend of the memory."""

    mib_per_min: float
    standard_error: float

    @property
    def is_within_noise(self) -> bool:
        """Whether it is at most two standard errors above zero."""
        return self.mib_per_min <= 2 * self.standard_error


@dataclass(slots=True)
class VitalSigns:
    """Samples of one process, once per second, by a thread of its own."""

    pid: int
    http_port: int
    samples: list[Sample] = field(default_factory=list)
    num_not_ready: int = 0
    _begun: float = field(default_factory=time.monotonic)

    def watch_until(self, stop: threading.Event) -> None:
        """Take samples until `stop` is set or the process has ended."""
        while self.is_alive:
            self.samples.append(self.look())
            self.num_not_ready += not self.is_ready()
            if stop.wait(INTERVAL_S):
                return

    def look(self) -> Sample:
        """One sample.

        Raises:
            OSError: The process has ended.
        """
        process = Path(f"/proc/{self.pid}")
        pages = int((process / "statm").read_text().split()[1])
        rss_mib = pages * os.sysconf("SC_PAGE_SIZE") / MIB
        descriptors, threads = (len(os.listdir(process / name)) for name in ("fd", "task"))
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
        """Whether the server reports that it accepts requests."""
        url = f"http://127.0.0.1:{self.http_port}/v2/health/ready"
        try:
            with urllib.request.urlopen(url, timeout=READY_LIMIT_S) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def slope(self, after_s: float) -> Slope:
        """The memory's trend after a warm-up, by least squares.

        Successive samples are correlated, so the standard error uses the number of independent
        samples that an autoregressive process of order 1 would be worth.
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
        correlation = float((before * after).sum() / max(float((before**2).sum()), 1e-9))
        correlation = min(max(correlation, 0.0), 0.99)
        worth = max(3.0, len(kept) * (1 - correlation) / (1 + correlation))
        variance = float((residuals**2).sum()) / len(kept) * worth / (worth - 2)
        return Slope(slope, float(np.sqrt(variance / (spread / len(kept) * worth))))
