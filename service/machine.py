"""This process on Linux: its CPUs and memory, by /proc and the control group, and its signals.

The only reader of the files of control groups, of version 2. Knows nothing of models.
"""

import asyncio
import ctypes
import gc
import math
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final

from model.runtime.machine import trim
from model.runtime.tensorrt.cuda import free_gpu_memory

# SIGHUP comes when the terminal is closed; by default it ends a process without a drain.
STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
CGROUP: Final = Path("/sys/fs/cgroup")
PROC: Final = Path("/proc")
# New objects after which Python looks for cycles among them. Requests make none, and with Python's
# 700 this search took 6 % of the CPU time of a request.
YOUNG_OBJECTS: Final = 20_000
# Written to /proc/self/clear_refs, it resets the high-water mark of memory; see proc(5).
RESET_PEAK: Final = "5"
TRIM_INTERVAL_S: Final = 5.0
# Blocks of this size leave the process as soon as they are freed. By default glibc raises the limit
# to 32 MiB as such blocks are freed, and images, which Pillow stores in blocks of 16 MiB, stayed in
# the heaps of their threads: 180 MiB until the next trim. The second is glibc's own ratio.
MMAP_THRESHOLD_BYTES: Final = 4 * 2**20
TRIM_THRESHOLD_BYTES: Final = 2 * MMAP_THRESHOLD_BYTES
# The same while a model is loaded: weights that are converted and packed left 20 MiB of holes
# between those that stay. Requests would take 1.08 to 1.12 times the CPU time with it.
LOADING_THRESHOLD_BYTES: Final = 256 * 2**10
# Names of both for mallopt(3).
M_TRIM_THRESHOLD: Final = -1
M_MMAP_THRESHOLD: Final = -3


def available_cpus(cgroup: Path = CGROUP) -> int:
    """CPUs by affinity and cgroup quota; at least 1. A quota of 1.5 CPUs counts as 2."""
    num_cpus = len(os.sched_getaffinity(0))
    match _read(cgroup / "cpu.max").split():
        case [quota, period] if quota.isdigit():  # else "max"
            return max(1, min(num_cpus, math.ceil(int(quota) / int(period))))
    return num_cpus


def work_in_background() -> None:
    """Mark this thread as one that computes: when it is woken, it takes no core from another.

    A thread that an event loop wakes often took the loop's core, or that of a client, only to wait
    for Python's lock, which the loop held. Its share of the cores stays the same. A thread with
    another policy than the default one, such as real-time, keeps it.
    """
    if os.sched_getscheduler(0) == os.SCHED_OTHER:
        with suppress(OSError):  # a sandbox may forbid it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def memory_limit(cgroup: Path = CGROUP) -> int | None:
    """Memory limit of the control group in bytes; None without a limit."""
    limit = _read(cgroup / "memory.max")
    return int(limit) if limit.isdigit() else None


def free_memory(cgroup: Path = CGROUP, proc: Path = PROC) -> int | None:
    """Bytes that this process can still allocate, by machine and control group; None if unknown."""
    sizes = (_kibibytes(proc / "meminfo", "MemAvailable"), _cgroup_free_bytes(cgroup))
    return min((size for size in sizes if size is not None), default=None)


def resident_bytes(proc: Path = PROC) -> int:
    """Resident memory of this process; 0 if unknown."""
    return _kibibytes(proc / "self" / "status", "VmRSS") or 0


def return_large_blocks(threshold_bytes: int = MMAP_THRESHOLD_BYTES) -> None:
    """Make the C library return blocks of this size to the system when they are freed."""
    with suppress(AttributeError):  # other C libraries, such as musl, have no mallopt
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, threshold_bytes)
        mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)


@contextmanager
def returning_blocks_of_weights() -> Iterator[None]:
    """Until the context ends, return also blocks as small as one weight. One load at a time."""
    return_large_blocks(LOADING_THRESHOLD_BYTES)
    try:
        yield
    finally:
        return_large_blocks()


def collect_and_trim() -> None:
    """Collect garbage, then return every free page of the heap to the system.

    glibc keeps freed memory in arenas of each thread: after a few model swaps a process would hold
    several models' worth of free pages. Takes tens of milliseconds with the GIL held, so call it
    rarely.
    """
    gc.collect()
    trim()


@asynccontextmanager
async def trimming_memory(
    interval_s: float = TRIM_INTERVAL_S, trim_heap: Callable[[], None] = trim
) -> AsyncIterator[None]:
    """Trim the heap regularly while the block runs; collect less often.

    After an hour of large and broken images a process held more than twice the memory that it used.
    None of it was leaked: a trim returned all of it. Whether one is worth while is not asked first:
    the answer takes as long, and one measured while a large image was freed was wrong by its size,
    after which the heap kept 70 MiB for minutes.
    """
    return_large_blocks()
    thresholds = gc.get_threshold()
    gc.set_threshold(YOUNG_OBJECTS, *thresholds[1:])
    task = asyncio.ensure_future(_trim_regularly(interval_s, trim_heap))
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


class PeakMeter:
    """Measures how far memory rises above what was in use when the meter was created.

    It reads the kernel's high-water mark, which counts the whole process: measure while nothing
    else runs. Free pages of the heap are returned first, else what reuses them would not count.
    """

    def __init__(self, proc: Path = PROC / "self") -> None:
        self._proc = proc
        trim()
        self._base_bytes = _kibibytes(proc / "status", "VmRSS")

    def peak_bytes(self, run: Callable[[], object]) -> int | None:
        """Call `run` and return the peak of memory over the base; None if unknown."""
        peak_bytes: int | None = None
        try:
            (self._proc / "clear_refs").write_text(RESET_PEAK, encoding="ascii")
        except OSError:
            run()
        else:
            run()
            peak_bytes = _kibibytes(self._proc / "status", "VmHWM")
        return _risen(peak_bytes, self._base_bytes)


class GpuMeter:
    """Measures how far a GPU's free memory falls below what was free when the meter was created.

    Runtimes keep the memory of their largest call. Other processes on the GPU disturb it.
    """

    def __init__(self) -> None:
        self._base_bytes = free_gpu_memory()

    def peak_bytes(self, run: Callable[[], object]) -> int | None:
        """Call `run` and return the memory in use since the meter was created; None if unknown."""
        run()
        return _risen(self._base_bytes, free_gpu_memory())


def _risen(more_bytes: int | None, less_bytes: int | None) -> int | None:
    if more_bytes is None or less_bytes is None:
        return None
    return max(0, more_bytes - less_bytes)


async def _trim_regularly(interval_s: float, trim_heap: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(interval_s)
        await asyncio.to_thread(trim_heap)


def _cgroup_free_bytes(cgroup: Path) -> int | None:
    limit, used = memory_limit(cgroup), _read(cgroup / "memory.current")
    if limit is None or not used.isdigit():
        return None
    stat = dict(line.split(" ", 1) for line in _read(cgroup / "memory.stat").splitlines())
    # The kernel counts cached file pages as used, but drops them before it kills.
    return max(0, limit - int(used) + int(stat.get("inactive_file", 0)))


def _kibibytes(path: Path, name: str) -> int | None:
    """A value of a /proc file whose lines are `Name:  123 kB`, in bytes."""
    for line in _read(path).splitlines():
        key, _, rest = line.partition(":")
        if key == name:
            return int(rest.split()[0]) * 1024
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def python_command(*arguments: str) -> list[str]:
    """The command line of another Python; no module of the working folder hides one of ours."""
    is_own_folder = os.path.samefile(".", Path(__file__).parents[1])  # of a checkout
    return [sys.executable, *([] if is_own_folder else ["-P"]), *arguments]


def on_stop_signals(stop: Callable[[], None], *, is_worker: bool = False) -> None:
    """Let the first signal stop the running event loop's server, and a second end the process.

    Python's own handler would wait for threads. A second signal does not end a worker, which
    systemd and the supervisor both may send one.
    """
    loop = asyncio.get_running_loop()

    def stop_once() -> None:
        stop()
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN if is_worker else signal.SIG_DFL)

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop_once)
