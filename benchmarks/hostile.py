"""Ten minutes of good, broken and hostile requests at once, and whether the service stands it.

`python -m benchmarks.hostile` starts a service of its own and attacks it over REST, gRPC and bare
TCP, while a trickle of good requests over both protocols must keep its answers. It prints what was
answered, what hung, and how memory, descriptors and threads went.
"""

import argparse
import json
import os
import re
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from benchmarks.attacks.campaign import Attacked, Outcome, Plan, run_campaign
from benchmarks.service_process import running_service

CLIENT_TIMEOUT_S = 5.0
SLOW_LIMIT_S = 30.0
# Small: good texts are computed anew again and again, and a cache that fills is no leak.
TEXT_CACHE_BYTES = 1024 * 1024
MMAP_THRESHOLD_BYTES = 1024 * 1024


def main() -> None:
    """Run the campaign and print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--warm-up-minutes", type=float, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="bundled")
    arguments = parser.parse_args()
    # Buffers of images then go back to the system when they are freed; kept for reuse, they would
    # come and go by hundreds of MiB and hide a leak.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(MMAP_THRESHOLD_BYTES))
    plan = Plan(seconds=60 * arguments.minutes, seed=arguments.seed, patience_s=SLOW_LIMIT_S)
    warm_up_min = arguments.warm_up_minutes or arguments.minutes / 5
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "service.monitoring.log"
        flags = (
            f"--model={arguments.model}",
            f"--client-timeout-s={CLIENT_TIMEOUT_S}",
            f"--text-cache-bytes={TEXT_CACHE_BYTES}",
        )
        with running_service(*flags, log_path=log) as service:
            attacked = Attacked(
                service.pid, service.http_port, service.grpc_port, service.metrics_port
            )
            outcome = run_campaign(attacked, plan)
        errors = error_lines(log)
    print(report(outcome, 60 * warm_up_min))
    print(f"exit status after SIGTERM: {service.process.returncode}")
    print(f"log lines of level ERROR, or in no form of ours: {errors.total()}")
    for line, number in errors.most_common(20):
        print(f"  {number} x {line}")


def report(outcome: Outcome, warm_up_s: float) -> str:
    """The numbers, as lines of text."""
    books, good, signs = outcome.books, outcome.good, outcome.signs
    lines = [f"{books.num_attacks} attacks in {outcome.seconds:.0f} s; answers by kind and status:"]
    for kind, counts in sorted(books.statuses.items()):
        told = ", ".join(f"{status} x {n}" for status, n in counts.most_common())
        lines.append(f"  {kind:32} {told}; slowest {books.slowest_s[kind]:.1f} s")
    lines.append("good requests:")
    for protocol, outcomes in sorted(good.outcomes.items()):
        told = ", ".join(f"{name} {n}" for name, n in outcomes.most_common())
        times = np.quantile(good.latencies_s[protocol], (0.5, 0.99)) * 1000
        lines.append(f"  {protocol}: {told}; p50 {times[0]:.0f} ms, p99 {times[1]:.0f} ms")
    lines += [f"  {complaint}" for complaint in good.complaints[:10]]
    lines.append(f"  wrong {good.count('wrong')}, failed {good.count('failed')}")
    lines.append(f"  largest difference from the answer at the start {good.largest_difference:.2g}")
    lines.append(f"hangs: {books.hangs.total()} {dict(books.hangs) or ''}")
    lines.append(f"process alive: {outcome.is_alive}, not ready {signs.num_not_ready} times")
    lines.append(memory(outcome, warm_up_s))
    for name, first, last in (
        ("descriptors", outcome.start.num_descriptors, outcome.end.num_descriptors),
        ("threads", outcome.start.num_threads, outcome.end.num_threads),
    ):
        lines.append(f"{name}: {first} before, {last} after")
    lines.append(f"requests still inside: {outcome.num_inside}")
    lines.append(f"defects: {sum(books.num_defects.values())}")
    for name, examples in sorted(books.defects.items()):
        lines.append(f"  {books.num_defects[name]} x {name}")
        lines += [f"      {example}" for example in examples]
    return "\n".join(lines)


def memory(outcome: Outcome, warm_up_s: float) -> str:
    """Resident memory over time, and the fitted line."""
    samples = outcome.signs.samples
    slope = outcome.signs.slope(warm_up_s)
    step = max(1, len(samples) // 20)
    curve = " ".join(f"{sample.rss_mib:.0f}" for sample in samples[::step])
    verdict = "within noise" if slope.is_within_noise else "GROWS"
    return (
        f"memory: {outcome.start.rss_mib:.0f} MiB before, {outcome.end.rss_mib:.0f} after; "
        f"slope after {warm_up_s / 60:.1f} min {slope.mib_per_min:+.2f} MiB/min, "
        f"standard error {slope.standard_error:.2f}: {verdict}\n"
        f"  every {step} s: {curve}"
    )


def error_lines(log: Path) -> Counter[str]:
    """What the service itself calls an error: message and exception; numbers are left out."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return Counter(short(line) for line in lines if is_error(line))


def short(line: str) -> str:
    """What is the same in all log lines of one kind."""
    try:
        record = json.loads(line)
        line = f"{record['logger']}: {record['message']}"
        if "exception" in record:
            line += f" ... {record['exception'].splitlines()[-1]}"
    except (ValueError, KeyError, TypeError):
        pass
    return re.sub(r"\d+", "#", line)[:400]


def is_error(line: str) -> bool:
    """Whether a log line is of the level ERROR, or none of ours at all."""
    try:
        return bool(json.loads(line)["level"] == "ERROR")
    except (ValueError, KeyError, TypeError):
        return True


if __name__ == "__main__":
    main()
