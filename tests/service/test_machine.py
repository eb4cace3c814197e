"""CPU and memory limits of both cgroup versions, peak and resident memory, BLAS threads."""

import asyncio
import ctypes
import gc
import os
import platform
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from model.runtime.machine import trim
from service.machine import (
    NO_LIMIT_BYTES,
    YOUNG_OBJECTS,
    PeakMeter,
    available_cpus,
    free_memory,
    memory_limit,
    resident_bytes,
    return_large_blocks,
    trimming_memory,
    work_in_background,
)

MB = 2**20
TIMEOUT_S = 20.0
VERSION_1 = {"limit_in_bytes": "500\n", "usage_in_bytes": "600\n"}
PRODUCT = """
import {module}
import os
import numpy as np
square = np.ones((600, 600), np.float32)
square @ square
print(len(os.listdir("/proc/self/task")))
"""


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="ascii")


def cpu_quota(quota: str) -> dict[str, str]:
    """Files of cgroup version 1."""
    return {"cpu/cpu.cfs_quota_us": f"{quota}\n", "cpu/cpu.cfs_period_us": "100000\n"}


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "5000 100000\n"}, 1),
        ({"cpu.max": "\n"}, 8),
        (cpu_quota("-1"), 8),
        (cpu_quota("300000"), 3),
    ],
)
def test_cpus_are_bounded_by_affinity_and_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cpus: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    write(tmp_path, files)
    assert available_cpus(tmp_path) == cpus


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"memory.max": "max\n"}, None),
        ({"memory.max": "1048576\n"}, 1048576),
        ({"memory/memory.limit_in_bytes": "2048\n"}, 2048),
        ({"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ({"memory.max": str(NO_LIMIT_BYTES - 1)}, NO_LIMIT_BYTES - 1),
    ],
)
def test_the_memory_limit_is_read_in_either_version(
    tmp_path: Path, files: dict[str, str], expected: int | None
) -> None:
    write(tmp_path, files)
    assert memory_limit(tmp_path) == expected


def test_free_memory_is_the_lesser_of_machine_and_control_group(tmp_path: Path) -> None:
    assert free_memory(tmp_path, tmp_path) is None
    write(tmp_path, {"meminfo": "MemTotal: 900 kB\nMemAvailable:     200 kB\n"})
    assert free_memory(tmp_path, tmp_path) == 200 * 1024
    write(tmp_path, {"memory.max": "max\n", "memory.current": "77\n"})
    assert free_memory(tmp_path, tmp_path) == 200 * 1024
    write(tmp_path, {"memory.max": "1000\n"})
    assert free_memory(tmp_path, tmp_path) == 923
    write(tmp_path, {"memory.stat": "anon 70\nfile 7\ninactive_file 5\nactive_file 2\n"})
    assert free_memory(tmp_path, tmp_path) == 928, "cached file pages are reclaimable"
    v1 = tmp_path / "version-1"
    write(v1, {f"memory/memory.{name}": text for name, text in VERSION_1.items()})
    assert free_memory(v1, v1) == 0
    write(v1, {"memory/memory.stat": "cache 200\ntotal_inactive_file 150\n"})
    assert free_memory(v1, v1) == 50


def use(num_bytes: int) -> None:
    """Write to memory that is freed at once."""
    assert np.ones(num_bytes, np.uint8)[-1] == 1


def test_each_peak_is_measured_by_itself() -> None:
    assert resident_bytes() > MB
    meter = PeakMeter()
    large_bytes = meter.peak_bytes(partial(use, 160 * MB))
    if large_bytes is None:
        pytest.skip("this system lets no process reset its high-water mark")
    small_bytes = meter.peak_bytes(partial(use, 30 * MB))
    assert small_bytes is not None
    assert 130 * MB < large_bytes < 260 * MB
    assert small_bytes < 100 * MB, "the larger peak before it does not count again"


def test_without_a_resettable_peak_the_run_happens_unmeasured(tmp_path: Path) -> None:
    ran: list[bool] = []
    assert PeakMeter(tmp_path / "no-proc").peak_bytes(lambda: ran.append(True)) is None
    assert ran == [True]
    write(tmp_path, {"status": "Name:\tpython\nVmRSS:\t 100 kB\nVmHWM:\t 350 kB\n"})
    assert PeakMeter(tmp_path).peak_bytes(lambda: None) == 250 * 1024


def test_a_c_library_without_malloc_trim_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    trim()
    return_large_blocks()


# Prints the peak in MiB of a run in free pages of the heap, which lie below a block that stays.
REUSED = """
from service.machine import PeakMeter
blocks = [bytearray(b"x") * 100_000 for _ in range(1_000)]
last = bytearray(b"x") * 100_000
del blocks
peak_bytes = PeakMeter().peak_bytes(lambda: bytearray(b"x") * (80 * 2**20))
print(-1 if peak_bytes is None else peak_bytes // 2**20)
"""
# Frees blocks below one that stays and prints the MiB that the process keeps. By default glibc
# would keep large ones after it has seen some, and those of a weight.
KEPT = """
from contextlib import nullcontext
from service.machine import resident_bytes, return_large_blocks, returning_blocks_of_weights
{first}
for size in (20, 30):
    bytearray(size * 2**20)
with {context}:
    before = resident_bytes()
    blocks = [bytearray(b"x") * ({size_mib} * 2**20) for _ in range({num})]
    last = bytearray(b"x") * 2**17
    del blocks
print((resident_bytes() - before) // 2**20)
"""
LARGE = {"context": "nullcontext()", "size_mib": 16, "num": 8}
WEIGHTS = {"first": "return_large_blocks()", "size_mib": 1, "num": 64}


@pytest.mark.skipif("glibc" not in platform.libc_ver(), reason="another heap")
@pytest.mark.parametrize(
    ("code", "num_mib"),
    [
        (REUSED, range(70, 100)),
        (KEPT.format(first="return_large_blocks()", **LARGE), range(16)),
        (KEPT.format(context="returning_blocks_of_weights()", **WEIGHTS), range(8)),
        (KEPT.format(context="nullcontext()", **WEIGHTS), range(50, 70)),
    ],
)
def test_freed_blocks_leave_the_process(project_root: Path, code: str, num_mib: range) -> None:
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, cwd=project_root, check=True, capture_output=True, text=True)
    if int(ended.stdout) == -1:
        pytest.skip("this system lets no process reset its high-water mark")
    assert int(ended.stdout) in num_mib


async def test_the_heap_is_trimmed_again_and_again() -> None:
    num_trims = 0
    is_over = asyncio.Event()
    loop = asyncio.get_running_loop()

    def count() -> None:
        nonlocal num_trims
        num_trims += 1
        if num_trims == 3:
            loop.call_soon_threadsafe(is_over.set)

    before = asyncio.all_tasks(), gc.get_threshold()
    async with trimming_memory(0.001, count):
        assert gc.get_threshold()[0] == YOUNG_OBJECTS
        await asyncio.wait_for(is_over.wait(), TIMEOUT_S)
    assert (asyncio.all_tasks(), gc.get_threshold()) == before


def test_a_trim_returns_free_pages_of_the_heap() -> None:
    if "glibc" not in platform.libc_ver():
        pytest.skip("the heap of this C library is another")
    trim()
    before = resident_bytes()
    blocks = [bytes([1]) * 4000 for _ in range(16_000)]
    # Every eighth block stays, so that no free page is at the end of the heap, which glibc returns.
    blocks = blocks[::8]
    assert resident_bytes() - before > 32 * MB
    trim()
    assert resident_bytes() - before < 32 * MB
    assert len(blocks) == 2000


@pytest.mark.parametrize("policy", [os.SCHED_OTHER, os.SCHED_IDLE])
def test_only_threads_with_the_default_policy_work_in_the_background(policy: int) -> None:
    found: list[int] = []

    def work() -> None:
        os.sched_setscheduler(0, policy, os.sched_param(0))
        work_in_background()
        found.append(os.sched_getscheduler(0))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(TIMEOUT_S)
    assert found == [os.SCHED_BATCH if policy == os.SCHED_OTHER else policy]


@pytest.mark.parametrize(
    ("module", "variable", "num_threads"),
    [("service.__main__", None, 1), ("service.__main__", "2", 2), ("tipserve_cli", None, 1)],
)
def test_matrix_products_start_no_threads_unless_the_variable_says_so(
    project_root: Path, module: str, variable: str | None, num_threads: int
) -> None:
    environment = {name: value for name, value in os.environ.items() if "_NUM_THREADS" not in name}
    if variable is not None:
        environment["OPENBLAS_NUM_THREADS"] = variable
    result = subprocess.run(
        [sys.executable, "-c", PRODUCT.format(module=module)],
        cwd=project_root,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert int(result.stdout) == num_threads
