"""What the machine offers: CPUs, memory, and the lanes and threads that fit."""

import gc
import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from model.package import ModelPackage
from model.runtime.choice import RuntimeChoice
from model.runtime.loaded_graphs import loaded_bytes
from service.lanes.work import Bucket, Kind
from service.process_memory import trim

# How many CPUs this process may use: by its affinity and its control group's quota.

CGROUP: Final = Path("/sys/fs/cgroup")


def available_cpus(cgroup: Path = CGROUP) -> int:
    """At least 1; a quota of 1.5 CPUs counts as 2."""
    cpus = len(os.sched_getaffinity(0))
    quota = _quota(cgroup)
    return cpus if quota is None else max(1, min(cpus, math.ceil(quota)))


def _quota(cgroup: Path) -> float | None:
    """CPUs of the quota, in either version of control groups; None where there is none."""
    v2 = _read(cgroup / "cpu.max").split()
    if len(v2) == 2 and v2[0] != "max":
        return int(v2[0]) / int(v2[1])
    quota_us = _read(cgroup / "cpu" / "cpu.cfs_quota_us")
    period_us = _read(cgroup / "cpu" / "cpu.cfs_period_us")
    if quota_us.isdigit() and period_us.isdigit():
        return int(quota_us) / int(period_us)
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""


# Gives memory that nothing uses back to the system, which the C library would rather keep.

logger = logging.getLogger(__name__)


def give_back_memory() -> None:
    """Collect what only refers to itself, and hand back every free page.

    glibc keeps what was freed for later, in arenas of each thread, so that after a few swaps a
    process would hold several models' worth of nothing. Takes tens of milliseconds, in which
    other threads may wait: for rare moments only.
    """
    began = time.monotonic()
    num_objects = gc.collect()
    collected = time.monotonic()
    trim()
    fields = {
        "objects": num_objects,
        "collect_s": round(collected - began, 4),
        "trim_s": round(time.monotonic() - collected, 4),
    }
    logger.debug("memory given back", extra={"fields": fields})


# How many lanes and threads this machine's processors and memory are good for.
#
# On a CPU several lanes of one thread compute more than one lane of several, so processors go to
# lanes first. What a lane holds for itself is the memory of its images, and with some runtimes also
# a copy of the weights: where memory does not hold that for each processor, the processors that are
# left become further threads of the lanes.

MAX_LANES: Final = 8
# A loaded graph keeps its weights in the file's layout and in the processor's.
MEMORY_FACTOR: Final = 3
# Of the memory that is free; the rest is for images under way.
MEMORY_SHARE: Final = 0.5
PROC: Final = Path("/proc")


@dataclass(frozen=True, slots=True)
class LanePlan:
    """Lanes of a model, and threads of each."""

    num_lanes: int
    num_threads: int


def plan_lanes(
    *,
    lanes: int | None,
    threads: int | None,
    cpus: int,
    free_bytes: int | None,
    lane_bytes: int,
    shared_bytes: int = 0,
) -> LanePlan:
    """Fill in what was not set.

    Args:
        lanes: As set.
        threads: As set.
        cpus: That the process may use.
        free_bytes: Of memory; None where it is not known.
        lane_bytes: That one lane takes for itself.
        shared_bytes: That all of them take together.
    """
    if lanes is None:
        lanes = min(MAX_LANES, max(1, cpus // (threads or 1)))
        if free_bytes is not None and lane_bytes > 0:
            budget_bytes = int(free_bytes * MEMORY_SHARE) - shared_bytes
            lanes = max(1, min(lanes, budget_bytes // lane_bytes))
    return LanePlan(lanes, threads or max(1, cpus // lanes))


def weight_bytes(package: ModelPackage, choice: RuntimeChoice) -> tuple[int, int]:
    """About the memory that the graphs of a choice take: in each lane, and in all together.

    ONNX Runtime shares its sessions where lanes have one thread, which is not known before the
    lanes are planned; so each of its lanes is taken to hold the weights. Those on a GPU are not in
    this memory, but pass through it once.
    """
    num_bytes = MEMORY_FACTOR * loaded_bytes(package.manifest, choice.runtime, choice.precision)
    is_own = choice.runtime == "onnx" and choice.device == "cpu"
    return (num_bytes, 0) if is_own else (0, num_bytes)


def free_memory(cgroup: Path = CGROUP, proc: Path = PROC) -> int | None:
    """Bytes that this process may still take, by the machine and by its control group."""
    known = [size for size in (_machine_bytes(proc), _cgroup_bytes(cgroup)) if size is not None]
    return min(known, default=None)


def _machine_bytes(proc: Path) -> int | None:
    for line in _read(proc / "meminfo").splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    return None


def _cgroup_bytes(cgroup: Path) -> int | None:
    """What is left under the limit, in either version of control groups.

    Files that were read and may be forgotten count as used there, and are free all the same.
    """
    for limit_name, used_name, stat_name, cached in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
            "total_inactive_file",
        ),
    ):
        limit, used = (
            _read(cgroup / limit_name).strip(),
            _read(cgroup / used_name).strip(),
        )
        if limit.isdigit() and used.isdigit():
            stat = dict(line.split(" ", 1) for line in _read(cgroup / stat_name).splitlines())
            return max(0, int(limit) - int(used) + int(stat.get(cached, 0)))
    return None


# How much memory an image takes while it is computed, by the kernel's own high-water mark.
#
# Weights are there before; this is what comes and goes with batches, and what large images need
# most of. It counts the whole process, so it is measured while nothing else runs.

SELF_PROC: Final = Path("/proc/self")
# What `clear_refs` takes to set the high-water mark back to what is in use; see proc(5).
RESET_PEAK: Final = "5"


class PeakMeter:
    """Memory beyond what was in use when the meter was made."""

    def __init__(self, proc: Path = SELF_PROC) -> None:
        self._proc = proc
        self._base_bytes = self._status("VmRSS")

    def peak_bytes(self, run: Callable[[], None]) -> int | None:
        """Run something, and say how far memory rose over the base while it ran.

        Returns:
            At least 0; None where the system does not tell.
        """
        is_reset = self._reset()
        run()
        peak_bytes = self._status("VmHWM")
        if not is_reset or peak_bytes is None or self._base_bytes is None:
            return None
        return max(0, peak_bytes - self._base_bytes)

    def _reset(self) -> bool:
        try:
            (self._proc / "clear_refs").write_text(RESET_PEAK, encoding="ascii")
        except OSError:
            return False
        return True

    def _status(self, name: str) -> int | None:
        try:
            lines = (self._proc / "status").read_text(encoding="ascii", errors="replace")
        except OSError:
            return None
        for line in lines.splitlines():
            key, _, rest = line.partition(":")
            if key == name:
                return int(rest.split()[0]) * 1024
        return None


@dataclass(frozen=True, slots=True)
class BatchMemory:
    """What one image of each served shape takes at its peak, in bytes; empty where not known."""

    peak_bytes: Mapping[Bucket, int]

    @property
    def largest_bytes(self) -> int:
        """Of the shape that takes most."""
        return max(self.peak_bytes.values(), default=0)

    def patches_within(
        self, budget_bytes: int, num_patches: Callable[[Bucket], int], kind: Kind = "image"
    ) -> int | None:
        """Patches of a batch that a budget holds, whatever their shape; None where not known.

        Memory grows with the patches where attention is computed in blocks, and the largest shape
        tells best by how much: what small ones take is mostly not theirs.
        """
        peaks = {bucket: peak for bucket, peak in self.peak_bytes.items() if bucket.kind == kind}
        if not any(peaks.values()):
            return None
        largest = max(peaks, key=num_patches)
        per_patch = max(1.0, peaks[largest] / num_patches(largest))
        return int(budget_bytes / per_patch)
