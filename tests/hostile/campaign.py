"""Minutes of good, broken and hostile requests at once.

`python -m tests.hostile.campaign` starts a service and attacks it over REST, gRPC and bare TCP,
while good requests over both protocols must keep their answers. It prints the answers, the hangs,
and the process's memory, descriptors and threads.
"""

import argparse
import json
import os
import re
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import grpc
import httpx
import numpy as np

from tests.hostile import documented, rest, rpc, wire
from tests.hostile.attack import Attack, Books, attack_until
from tests.hostile.good_requests import Trickle, good_requests
from tests.hostile.images import bombs
from tests.hostile.vital_signs import Sample, VitalSigns
from tests.processes.service_process import RunningService, running_service
from tipserve_client import Client, Retry

SETTLE_LIMIT_S: Final = 60.0
CHANNEL_OPTIONS: Final = (
    # A connection for each channel, and no limits but the server's.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_metadata_size", 16 * 1024 * 1024),
)
CLIENT_TIMEOUT_S: Final = 5.0
SLOW_LIMIT_S: Final = 30.0
# Small, so that the good texts are computed repeatedly; a cache that fills is not a leak.
TEXT_CACHE_BYTES: Final = 1024 * 1024
# Freed image buffers return to the system; kept for reuse, they would hide a leak.
MMAP_THRESHOLD_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The parameters of a campaign.

    Attributes:
        seconds: Time in which attacks begin; the last ones end a little later.
        seed: Seed of all random numbers.
        limit_s: Limit of an attack; without an answer until then it is a hang.
        patience_s: Limit of a slow client, whose connection the server must close.
        num_slow: Slow clients at any time.
        pause_s: Pause between two good requests of one protocol.
    """

    seconds: float
    seed: int = 0
    limit_s: float = 60.0
    patience_s: float = SLOW_LIMIT_S
    num_slow: int = 8
    pause_s: float = 0.1


@dataclass(frozen=True, slots=True)
class Outcome:
    """Results of a campaign.

    Attributes:
        books: Results of all requests.
        largest_difference: Of a good answer from the one at the start.
        signs: Samples of the process.
        start: Sample before the first attack.
        end: Sample after the last attack, when its connections were closed.
        is_alive: Whether the process was alive and ready at the end.
        num_inside: Requests that the service still counted as in flight.
        seconds: From the first attack to the end of the last one.
    """

    books: Books
    largest_difference: float
    signs: VitalSigns
    start: Sample
    end: Sample
    is_alive: bool
    num_inside: int
    seconds: float


def run_campaign(service: RunningService, plan: Plan) -> Outcome:
    """Attack for the planned time, and then wait until the service has settled.

    Raises:
        TipserveError: Good requests fail even before the first attack.
    """
    books = Books()
    signs = VitalSigns(service.pid, service.http_port)
    bombs()  # take seconds to make
    with ExitStack() as stack:
        no_retry = Retry(max_attempts=1)
        urls = {"REST": service.http_url, "gRPC": f"grpc://127.0.0.1:{service.grpc_port}"}
        trickles = []
        for protocol, url in urls.items():
            client = Client(url, timeout_s=plan.limit_s, retry=no_retry)
            asks = good_requests(stack.enter_context(client))
            trickles.append(Trickle(f"good {protocol}", asks, books))
        groups = attackers(service, plan, stack)
        start = signs.look()
        stop = threading.Event()
        begun = time.monotonic()
        jobs: list[Callable[[], None]] = [partial(signs.watch_until, stop)]
        jobs += [partial(trickle.ask_until, stop, plan.pause_s) for trickle in trickles]
        jobs += [
            partial(attack_until, stop, group, books, 1000 * plan.seed + index)
            for index, group in enumerate(groups)
        ]
        port = service.http_port
        jobs.append(partial(documented.ask_until, stop, port, plan.limit_s, books, plan.seed))
        threads = [threading.Thread(target=guarded, args=(job, books), daemon=True) for job in jobs]
        for thread in threads:
            thread.start()
        stop.wait(plan.seconds)
        stop.set()
        for thread in threads:
            thread.join(plan.limit_s + plan.patience_s)
            if thread.is_alive():
                books.note_defect("an attacker did not end", thread.name)
        seconds = time.monotonic() - begun
    end = settle(service, signs, start)
    is_alive = signs.is_alive and signs.is_ready()
    num_inside = num_in_flight(service) if is_alive else -1
    largest = max(trickle.largest_difference for trickle in trickles)
    return Outcome(books, largest, signs, start, end, is_alive, num_inside, seconds)


def attackers(service: RunningService, plan: Plan, stack: ExitStack) -> list[list[Attack]]:
    """The attacks of each thread; the stack closes their connections."""
    limit_s = plan.limit_s
    client = stack.enter_context(httpx.Client(base_url=service.http_url, timeout=limit_s))
    address = f"127.0.0.1:{service.grpc_port}"
    channels: list[Any] = [
        stack.enter_context(grpc.insecure_channel(address, options=CHANNEL_OPTIONS))
        for _ in range(2)
    ]
    slow = wire.slow_attacks(service.http_port, plan.patience_s)
    return [
        rest.image_attacks(client, limit_s),
        rpc.image_attacks(channels[0], limit_s),
        rest.body_attacks(client, limit_s),
        wire.http1_attacks(service.http_port, limit_s),
        wire.http2_attacks(service.grpc_port, limit_s),
        [*rpc.rpc_attacks(channels[1], limit_s), *rpc.impatient_attacks(channels[1], limit_s)],
        *[slow] * plan.num_slow,
    ]


def guarded(job: Callable[[], None], books: Books) -> None:
    """Run a job; its failure is a defect of the campaign."""
    try:
        job()
    except Exception:
        books.note_defect("an attacker failed", traceback.format_exc())


def settle(service: RunningService, signs: VitalSigns, start: Sample) -> Sample:
    """Wait until the attack's connections and requests have ended, or for the time limit."""
    deadline = time.monotonic() + SETTLE_LIMIT_S
    sample = start
    while signs.is_alive and time.monotonic() < deadline:
        sample = signs.look()
        if sample.num_descriptors <= start.num_descriptors and not num_in_flight(service):
            break
        time.sleep(0.2)
    return sample


def num_in_flight(service: RunningService) -> int:
    """Requests that the service counts as in flight."""
    return int(service.metric("tipserve_inflight"))


def main() -> None:
    """Run the campaign and print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--warm-up-minutes", type=float, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="bundled-student")
    arguments = parser.parse_args()
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(MMAP_THRESHOLD_BYTES))
    plan = Plan(seconds=60 * arguments.minutes, seed=arguments.seed)
    warm_up_min = arguments.warm_up_minutes or arguments.minutes / 5
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "service.log"
        flags = (
            f"--model={arguments.model}",
            f"--client-timeout-s={CLIENT_TIMEOUT_S}",
            f"--text-cache-bytes={TEXT_CACHE_BYTES}",
        )
        with running_service(*flags, log_path=log) as service:
            outcome = run_campaign(service, plan)
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    print(report(outcome, 60 * warm_up_min))
    print(f"exit status after SIGTERM: {service.process.returncode}")
    errors = Counter(short(line) for line in lines if is_error(line))
    print(f"log lines of level ERROR, or not in JSON: {errors.total()}")
    for line, number in errors.most_common(20):
        print(f"  {number} x {line}")


def report(outcome: Outcome, warm_up_s: float) -> str:
    """The results, as lines of text."""
    books, signs = outcome.books, outcome.signs
    num_requests = sum(counts.total() for counts in books.statuses.values())
    lines = [f"{num_requests} requests in {outcome.seconds:.0f} s; answers by kind and status:"]
    for kind, counts in sorted(books.statuses.items()):
        answers = ", ".join(f"{status} x {n}" for status, n in counts.most_common())
        p50, p99, slowest = np.quantile(books.seconds[kind], (0.5, 0.99, 1.0))
        times = f"p50 {p50:.2f} s, p99 {p99:.2f} s, slowest {slowest:.1f} s"
        lines.append(f"  {kind:32} {answers}; {times}")
    lines.append(f"largest difference of a good answer: {outcome.largest_difference:.2g}")
    lines.append(f"hangs: {books.hangs.total()} {dict(books.hangs) or ''}")
    lines.append(f"process alive: {outcome.is_alive}, not ready {signs.num_not_ready} times")
    lines += memory(outcome, warm_up_s)
    for name in ("descriptors", "threads"):
        first, last = (getattr(at, f"num_{name}") for at in (outcome.start, outcome.end))
        lines.append(f"{name}: {first} before, {last} after")
    lines.append(f"requests still in flight: {outcome.num_inside}")
    lines.append(f"defects: {sum(books.num_defects.values())}")
    for name, examples in sorted(books.defects.items()):
        lines.append(f"  {books.num_defects[name]} x {name}")
        lines += [f"      {example}" for example in examples]
    return "\n".join(lines)


def memory(outcome: Outcome, warm_up_s: float) -> list[str]:
    """Resident memory over time, and its trend."""
    samples = outcome.signs.samples
    slope = outcome.signs.slope(warm_up_s)
    step = max(1, len(samples) // 20)
    return [
        f"memory: {outcome.start.rss_mib:.0f} MiB before, {outcome.end.rss_mib:.0f} after; "
        f"slope after {warm_up_s / 60:.1f} min {slope.mib_per_min:+.2f} MiB/min, standard error "
        f"{slope.standard_error:.2f}: {'within noise' if slope.is_within_noise else 'GROWS'}",
        f"  every {step} s: {' '.join(f'{sample.rss_mib:.0f}' for sample in samples[::step])}",
    ]


def short(line: str) -> str:
    """The common part of all log lines of one kind."""
    with suppress(ValueError, KeyError, TypeError):
        record = json.loads(line)
        line = f"{record['logger']}: {record['message']}"
        if "exception" in record:
            line += f" ... {record['exception'].splitlines()[-1]}"
    return re.sub(r"\d+", "#", line)[:400]


def is_error(line: str) -> bool:
    """Whether a log line has the level ERROR, or is not in JSON."""
    try:
        return bool(json.loads(line)["level"] == "ERROR")
    except (ValueError, KeyError, TypeError):
        return True


if __name__ == "__main__":
    main()
