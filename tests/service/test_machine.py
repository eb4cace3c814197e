"""CPU and memory limits of control groups, peak and resident memory, BLAS threads."""

import asyncio
import gc
import os
import platform
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from service.machine import (
    YOUNG_OBJECTS,
    PeakMeter,
    available_cpus,
    free_memory,
    memory_limit,
    trimming_memory,
    work_in_background,
)

TIMEOUT_S = 20.0


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="ascii")


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "5000 100000\n"}, 1),
        ({"cpu.max": "\n"}, 8),
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
    [({}, None), ({"memory.max": "max\n"}, None), ({"memory.max": "1048576\n"}, 1048576)],
)
def test_the_memory_limit_is_read(
    tmp_path: Path, files: dict[str, str], expected: int | None
) -> None:
    write(tmp_path, files)
    assert memory_limit(tmp_path) == expected


def test_free_memory_is_the_lesser_of_machine_and_control_group(tmp_path: Path) -> None:
    assert free_memory(tmp_path, tmp_path) is None
    write(tmp_path, {"meminfo": "MemTotal: 900 kB\nMemAvailable:     200 kB\n"})
    write(tmp_path, {"memory.max": "max\n", "memory.current": "77\n"})
    assert free_memory(tmp_path, tmp_path) == 200 * 1024
    write(tmp_path, {"memory.max": "1000\n"})
    assert free_memory(tmp_path, tmp_path) == 923
    write(tmp_path, {"memory.stat": "anon 70\nfile 7\ninactive_file 5\nactive_file 2\n"})
    assert free_memory(tmp_path, tmp_path) == 928, "cached file pages are reclaimable"


def test_without_a_resettable_peak_the_run_happens_unmeasured(tmp_path: Path) -> None:
    ran: list[bool] = []
    assert PeakMeter(tmp_path / "no-proc").peak_bytes(lambda: ran.append(True)) is None
    assert ran == [True]
    write(tmp_path, {"status": "Name:\tpython\nVmRSS:\t 100 kB\nVmHWM:\t 350 kB\n"})
    assert PeakMeter(tmp_path).peak_bytes(lambda: None) == 250 * 1024


# Prints the peak in MiB of a run in free pages of the heap, which lie below a block that stays, and
# after a larger one.
PEAK = """
from service.machine import PeakMeter
blocks = [bytearray(b"x") * 100_000 for _ in range(1_000)]
last = bytearray(b"x") * 100_000
del blocks
meter = PeakMeter()
meter.peak_bytes(lambda: bytearray(b"x") * (160 * 2**20))
peak_bytes = meter.peak_bytes(lambda: bytearray(b"x") * (80 * 2**20))
print(-1 if peak_bytes is None else peak_bytes // 2**20)
"""
# Frees blocks below one that stays and prints the MiB that the process keeps. By default glibc
# would keep large ones after it has seen some, and those of a weight.
KEPT = """
from contextlib import nullcontext
from service.machine import resident_bytes, return_large_blocks, returning_blocks_of_weights
return_large_blocks()
for size in (20, 30):
    bytearray(size * 2**20)
with {context}:
    before = resident_bytes()
    blocks = [bytearray(b"x") * ({size_mib} * 2**20) for _ in range({num})]
    last = bytearray(b"x") * 2**17
    del blocks
print((resident_bytes() - before) // 2**20)
"""


@pytest.mark.skipif("glibc" not in platform.libc_ver(), reason="another heap")
@pytest.mark.parametrize(
    ("code", "num_mib"),
    [
        (PEAK, range(70, 100)),
        (KEPT.format(context="nullcontext()", size_mib=16, num=8), range(16)),
        (KEPT.format(context="returning_blocks_of_weights()", size_mib=1, num=64), range(8)),
        (KEPT.format(context="nullcontext()", size_mib=1, num=64), range(50, 70)),
    ],
)
def test_freed_blocks_leave_the_process(project_root: Path, code: str, num_mib: range) -> None:
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, cwd=project_root, check=True, capture_output=True, text=True)
    if int(ended.stdout) == -1:
        pytest.skip("this system lets no process reset its high-water mark")
    assert int(ended.stdout) in num_mib


async def test_the_heap_is_trimmed_again_and_again() -> None:
    trims = threading.Semaphore(0)
    before = asyncio.all_tasks(), gc.get_threshold()
    async with trimming_memory(0.001, trims.release):
        assert gc.get_threshold()[0] == YOUNG_OBJECTS
        for _ in range(3):
            assert await asyncio.to_thread(trims.acquire, timeout=TIMEOUT_S)
    assert (asyncio.all_tasks(), gc.get_threshold()) == before


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


PRODUCT = """
import {module}
import os
import numpy as np
square = np.ones((600, 600), np.float32)
square @ square
print(len(os.listdir("/proc/self/task")))
"""


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
