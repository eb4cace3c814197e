"""Two workers on two cores against one worker on one core, and the memory of both.

Claim: with a model and a decoder that do nothing, two workers answer at least 1.7 times the
requests/s of one. The load generator runs on the same two cores, so its CPU time is counted apart:
the rate is that of the workers for each second of CPU time, times their cores.
Run: python -m benchmarks.workers [--model bundled] [--rounds 7]
"""

import argparse
import asyncio
import os
import re
import socket
import statistics
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.load import rest_clients, rest_request, send
from benchmarks.noop_overhead import BODY, TARGETS, running
from benchmarks.service_process import RunningService, read_metric, running_service

MEMORY = re.compile(r"^(Rss|Pss|Private_Clean|Private_Dirty):\s+(\d+) kB", re.MULTILINE)
# So many that the kernel spreads them evenly enough.
IN_FLIGHT = 128
# Small, so that the load generator leaves the cores to the workers.
NUM_BYTES = 1000
READY_LIMIT_S = 60.0


def children(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return [int(child) for child in text.split()]


def pin(pids: list[int]) -> None:
    """Let each process run on one core of its own, with the priority of this one.

    A worker has a session of its own, and so a scheduling group of its own.
    """
    group = Path("/proc/self/autogroup")
    nice = group.read_text(encoding="ascii").split()[-1] if group.exists() else ""
    for pid, core in zip(pids, sorted(os.sched_getaffinity(0)), strict=False):
        if nice:
            Path(f"/proc/{pid}/autogroup").write_text(nice, encoding="ascii")
        for thread in os.listdir(f"/proc/{pid}/task"):
            os.sched_setaffinity(int(thread), {core})


def cpu_s(pids: list[int]) -> float:
    """CPU seconds of processes so far."""
    return sum(time.clock_gettime(~pid << 3 | 2) for pid in pids)


async def measure(port: int, pids: list[int], seconds: float) -> tuple[float, float, float]:
    """Return answers a second, answers for each CPU second of the workers, and their busy cores."""
    request = rest_request(TARGETS["tipserve"], BODY[:NUM_BYTES])
    clients = await rest_clients(port, request, IN_FLIGHT)
    await send(clients, total=4 * IN_FLIGHT)
    before = cpu_s(pids)
    load = await send(clients, seconds=seconds)
    used_s = cpu_s(pids) - before
    if set(load.statuses) != {"200"}:
        raise RuntimeError(f"not every request was answered: {dict(load.statuses)}")
    return load.num_answers / load.wall_s, load.num_answers / used_s, used_s / load.wall_s


def wait_for_workers(metrics_port: int, number: int) -> None:
    """Wait until so many workers are ready."""
    until = time.monotonic() + READY_LIMIT_S
    while read_metric(metrics_port, "tipserve_workers_ready") < number:
        if time.monotonic() > until:
            raise RuntimeError("the workers did not become ready")
        time.sleep(0.1)


def free_port() -> int:
    """Return a port that no program has now."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def compare_rates(rounds: int, seconds: float) -> None:
    """Alternate one and two workers, so that other load on the machine affects both."""
    # One CPU each, as workers get from the two.
    metrics_port = free_port()
    one_cpu = ("cpus=1", "max_queue_patches=131072")
    two_cpus = ("cpus=2", "max_queue_patches=262144", "workers=2", f"metrics_port={metrics_port}")
    with running("tipserve", *one_cpu) as one, running("tipserve", *two_cpus) as two:
        sides = {"1 worker": (one[1], [one[0]])}
        wait_for_workers(metrics_port, 2)
        sides["2 workers"] = (two[1], children(two[0]))
        for _, pids in sides.values():
            pin(pids)
        found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in sides}
        for _ in range(rounds):
            for name, (port, pids) in sides.items():
                found[name].append(asyncio.run(measure(port, pids, seconds)))
    for name, measured in found.items():
        wall, own, busy = (statistics.median(column) for column in zip(*measured, strict=True))
        print(
            f"{name:9} {wall:6.0f} requests/s, {1e6 / own:5.0f} CPU us/request of the workers, "
            f"{busy:.2f} of their cores busy; {IN_FLIGHT} in flight"
        )
    ratios = [2 * b[1] / a[1] for a, b in zip(*found.values(), strict=True)]
    print(
        f"2 workers on 2 cores / 1 worker on 1 core: {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}; claim: at least 1.70)"
    )


def memory_mib(pids: list[int]) -> Mapping[str, float]:
    """Memory of processes: pages that several of them map count once in Pss, for each in Rss."""
    found = {"Rss": 0.0, "Pss": 0.0, "private": 0.0}
    for pid in pids:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
        for name, kibibytes in MEMORY.findall(text):
            found["private" if name.startswith("Private") else name] += int(kibibytes) / 1024
    return found


def describe(service: RunningService, num_workers: int) -> str:
    """Return the memory of a service whose workers are all ready."""
    if num_workers > 1:
        wait_for_workers(service.metrics_port, num_workers)
    workers = children(service.pid) if num_workers > 1 else []
    whole = memory_mib([service.pid, *workers])
    text = "  ".join(f"{name} {mib:.0f} MiB" for name, mib in whole.items())
    if workers:
        text += f"; of this the supervisor {memory_mib([service.pid])['private']:.0f} private"
    return text


def main() -> None:
    """Measure rates, then memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="bundled", help="model package for the memory")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds per side and round")
    options = parser.parse_args()
    if options.rounds:
        compare_rates(options.rounds, options.seconds)
    for num_workers in (1, 2):
        flags = (f"--model={options.model}", "--lanes=2", f"--workers={num_workers}")
        with running_service(*flags) as service:
            print(f"{options.model}, 2 lanes, {num_workers} workers: ", end="")
            print(describe(service, num_workers))


if __name__ == "__main__":
    main()
