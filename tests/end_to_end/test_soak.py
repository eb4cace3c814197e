"""A server that has warmed up grows no further: blocks of the same mixed requests are compared.

`benchmarks/soak.py` sends them for two hours. Here every figure is taken after a collection and a
trim in the server, so that what is left is in use.
"""

import asyncio
import json
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import astuple, dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.service_process import RunningService, wait_until_ready
from benchmarks.soak import load, requests, sample

WARM_UP, NUM_BLOCKS, BLOCK = 300, 8, 150
LIMIT_S = 60.0
# What one request may leave on average. A leaked image has 50,000 bytes or more, a leaked call
# some dozen objects.
MAX_LEFT_BYTES = 25_000
MAX_LEFT_OBJECTS = 1.0
# The text cache is so small that the warm-up fills it. At the signal the server collects garbage,
# trims its heap, and writes the number of its objects.
PROGRAM = """
import gc, json, signal, sys
from pathlib import Path
from service.__main__ import run
from service.machine import collect_and_trim

path = Path(sys.argv.pop(1))

def report(*_):
    collect_and_trim()
    whole = path.with_suffix(".part")
    whole.write_text(json.dumps(len(gc.get_objects())))
    whole.rename(path)

signal.signal(signal.SIGUSR1, report)
sys.exit(run())
"""


@dataclass(frozen=True)
class State:
    """What a server without requests holds."""

    rss_bytes: float
    num_objects: int
    num_threads: int
    num_descriptors: int


def measure(service: RunningService, report: Path) -> State:
    """Make the server collect and trim, and read what it holds."""
    report.unlink(missing_ok=True)
    service.process.send_signal(signal.SIGUSR1)
    until = time.monotonic() + LIMIT_S
    while not report.exists():
        assert time.monotonic() < until, "the server does not react to a signal"
        time.sleep(0.05)
    now = sample(service.pid)
    num_objects = json.loads(report.read_text(encoding="utf-8"))
    return State(now.rss_mib * 2**20, num_objects, now.num_threads, now.num_descriptors)


def settled(service: RunningService, report: Path) -> State:
    """The least of each figure once no request is left: connections close after their answers."""
    until = time.monotonic() + LIMIT_S
    while service.metric("tipserve_inflight"):
        assert time.monotonic() < until, "requests are still in flight"
        time.sleep(0.1)
    states = []
    for _ in range(5):
        states.append(astuple(measure(service, report)))
        time.sleep(0.3)
    return State(*map(min, zip(*states, strict=True)))


@pytest.mark.slow
def test_mixed_requests_leave_nothing(tmp_path: Path) -> None:
    report, ports_file = tmp_path / "objects.json", tmp_path / "ports.json"
    ports = ["--http-port=0", "--grpc-port=0", "--metrics-port=0", f"--ports-file={ports_file}"]
    flags = [*ports, "--text-cache-bytes=100000", "--log-level=ERROR"]
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(report), *flags])
    try:
        service = wait_until_ready(process, ports_file)
        rest, counts = requests(), Counter[str]()
        states = []
        for num_requests in (WARM_UP, *[BLOCK] * NUM_BLOCKS):
            counts += asyncio.run(load(service, rest, num_requests))
            states.append(settled(service, report))
    finally:
        process.terminate()
        process.wait(LIMIT_S)
    assert set(counts) == {"200", "422", "gRPC OK", "hung up"}, counts
    first, *_, last = states
    num_requests = NUM_BLOCKS * BLOCK
    # A leak adds to most blocks. An arena that grows for a larger batch adds once, and stays.
    added = [after.rss_bytes - before.rss_bytes for before, after in pairwise(states)]
    assert min(statistics.mean(added), statistics.median(added)) < BLOCK * MAX_LEFT_BYTES, states
    assert last.num_objects - first.num_objects < num_requests * MAX_LEFT_OBJECTS, states
    assert last.num_threads <= first.num_threads, states
    assert last.num_descriptors <= first.num_descriptors, states
