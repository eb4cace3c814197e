"""The model against reality: a real server under a Poisson load, and the same load simulated.

Run: python -m benchmarks.autoscaling.validate [--seconds 60] [--part all]

Every answer tells how long it waited and ran (`Server-Timing`). First the service around a model
that sleeps, which neighbours on the machine hardly disturb: does its queue do what the simulation
does? Then a real model, whose times vary. The simulation gets the very arrivals and the mean and
variation of run times, "replayed" also has every run time as it was, first come first served, and
the closed form knows the rate, the mean and the variation alone.
"""

import argparse
import asyncio
import heapq
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import simpy

from benchmarks.autoscaling.closed_form import ratio
from benchmarks.autoscaling.open_stream import Observed, alone, poisson
from benchmarks.autoscaling.queueing import Queue
from benchmarks.autoscaling.replica import IMAGE, Process, Replica, ReplicaSpec, Request
from benchmarks.autoscaling.report import seconds
from benchmarks.autoscaling.scenario import quantile
from benchmarks.batch_latency import photo_like_jpeg
from benchmarks.load import rest_request
from benchmarks.service_process import RunningService, running_service, wait_until_ready
from service.lanes.latency_model import CostCurve
from service.lanes.work import BatchLimits

UTILISATIONS = (0.5, 0.75)
COUNTED = ("batches", "batch_items", "batch_seconds")
ROOM = 2**30
SHARES = (0.5, 0.99)


@dataclass(frozen=True, slots=True)
class Case:
    """A stand-in to be loaded: lanes, line of costs in seconds, and images of a batch."""

    lanes: int
    intercept_s: float
    slope_s: float
    max_items: int

    @property
    def capacity(self) -> float:
        """Images a second in full batches."""
        curve = CostCurve(self.intercept_s, self.slope_s)
        return self.lanes * self.max_items / curve.seconds(self.max_items)


CASES = (Case(1, 0.0, 0.1, 1), Case(2, 0.0, 0.1, 1), Case(2, 0.08, 0.02, 4))


@contextmanager
def sleeping_service(case: Case) -> Iterator[RunningService]:
    """Run the stand-in, and end it by SIGTERM."""
    with tempfile.TemporaryDirectory() as folder:
        ports_file = Path(folder) / "ports.json"
        command = [sys.executable, "-m", "benchmarks.autoscaling.sleeping_service", str(ports_file)]
        command += [str(case.intercept_s), str(case.slope_s), f"lanes={case.lanes}"]
        command += [f"max_batch_images={case.max_items}", f"max_queue_patches={ROOM}"]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            yield wait_until_ready(process, ports_file)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def simulated(observed: Observed, case: Case) -> tuple[list[float], float]:
    """Waits of the same arrivals at a simulated replica, and how busy its lanes are."""
    spec = ReplicaSpec(
        lanes=case.lanes,
        costs={IMAGE: CostCurve(case.intercept_s, case.slope_s)},
        limits={IMAGE: BatchLimits(max_items=case.max_items, max_cost=ROOM)},
        max_queue_cost=ROOM,
        service_cv=observed.variation if case.max_items == 1 else 0.0,
    )
    env, answered = simpy.Environment(), list[Request]()
    replica = Replica(env, spec, random.Random(1), answered.append)
    begun = min(observed.sent)

    def arrive() -> Process:
        for sent in sorted(observed.sent):
            yield env.timeout(max(0.0, sent - begun - env.now))
            replica.offer(Request(env.now, {IMAGE: (1, 1)}))

    env.process(arrive())
    env.run()
    busy = replica.counters.busy_s / (case.lanes * env.now)
    return [request.queue_s for request in answered], busy


def replayed(observed: Observed, lanes: int) -> list[float]:
    """Waits of the same arrivals with the same run times, first come, first served."""
    free, waits = [0.0] * lanes, []
    for sent, run_s in sorted(zip(observed.sent, observed.run_s, strict=True)):
        begin = max(sent, heapq.heappop(free))
        waits.append(begin - sent)
        heapq.heappush(free, begin + run_s)
    return waits


def row(name: str, observed: Observed, case: Case, wanted: float) -> str:
    """What was measured, and beside it the others as multiples of that."""
    waits, busy = simulated(observed, case)
    others = [waits]
    if case.max_items == 1:
        others.append(replayed(observed, case.lanes))
    variation = observed.variation
    queue = Queue(
        servers=case.lanes,
        rate=observed.rate,
        service_s=statistics.mean(observed.run_s),
        service_cv2=variation**2,
    )
    cells = [name, f"{wanted:.0%}", f"{busy:.0%}", str(len(observed.sent)), f"{variation:.2f}"]
    for share in SHARES:
        real_s = quantile(observed.queue_s, share)
        ratios = [ratio(quantile(waits, share), real_s) for waits in others]
        if case.max_items == 1:
            ratios.append(ratio(queue.wait_s(share), real_s))
        cells += [seconds(real_s), *ratios, *["-"] * (3 - len(ratios))]
    return "| " + " | ".join(cells) + " |"


def head() -> Sequence[str]:
    """Of the table."""
    names = ["what", "of capacity", "busy", "requests", "variation of run"]
    for share in SHARES:
        names += [f"p{share * 100:.0f} wait", "simulated", "replayed", "closed form"]
    return ["| " + " | ".join(names) + " |", "| --- " * len(names) + "|"]


def as_it_ran(service: RunningService, before: Sequence[float], case: Case) -> Case:
    """The case with what batches really took, by the service's own counts."""
    batches, items, busy_s = (
        after - earlier for after, earlier in zip(counts(service), before, strict=True)
    )
    overhead_s = busy_s / batches - case.slope_s * items / batches
    return replace(case, intercept_s=max(0.0, overhead_s))


def counts(service: RunningService) -> tuple[float, ...]:
    """Batches so far, their items, and their seconds."""
    return tuple(service.metric(f"tipserve_model_{name}_total") for name in COUNTED)


async def load_stand_in(service: RunningService, case: Case, length_s: float) -> None:
    """All utilisations of one stand-in."""
    request = rest_request("/v1/images:embed?outputs=cls1", b"no image is looked at")
    await alone(service.http_port, request)
    batch = f"batches of {case.max_items}, {1000 * case.intercept_s:.0f} + "
    name = f"{case.lanes} lanes, {batch if case.intercept_s else ''}{1000 * case.slope_s:.0f} ms"
    for wanted in UTILISATIONS:
        before = counts(service)
        observed = await poisson(service.http_port, request, wanted * case.capacity, length_s)
        ran = as_it_ran(service, before, case)
        print(row(f"sleeps, {name}", observed, ran, wanted), flush=True)


async def load_model(port: int, options: argparse.Namespace) -> None:
    """All utilisations of a real model on one lane."""
    target = f"/v1/images:embed?outputs=cls1&resolution={options.resolution}"
    request = rest_request(target, photo_like_jpeg(0))
    await alone(port, request)
    for wanted in UTILISATIONS:
        # Anew each time: neighbours on the machine come and go.
        before_s = statistics.mean((await alone(port, request)).run_s)
        observed = await poisson(port, request, wanted / before_s, options.seconds)
        case = Case(1, 0.0, statistics.mean(observed.run_s), 1)
        print(row(f"{options.model}, {options.resolution} px, 1 lane", observed, case, wanted))


def main() -> None:
    """Start what was asked for and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=["sleep", "model", "all"], default="all")
    parser.add_argument("--model", default="bundled", help="model package: bundled, or a folder")
    parser.add_argument("--resolution", type=int, default=448, help="pixels")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each load")
    options = parser.parse_args()
    print("\n".join(head()), flush=True)
    if options.part != "model":
        for case in CASES:
            with sleeping_service(case) as service:
                asyncio.run(load_stand_in(service, case, options.seconds))
    if options.part != "sleep":
        flags = [f"--model={options.model}", "--lanes=1", "--max-batch-images=1"]
        with running_service(*flags, f"--max-queue-patches={ROOM}") as service:
            asyncio.run(load_model(service.http_port, options))


if __name__ == "__main__":
    main()
