"""Model swaps under load: number of failed requests, and whether memory is returned.

`python -m benchmarks.swap_rounds [--rounds 20] [-- further flags of the service]`. Two folders hold
the bundled model; each round serves the other one under the same name. Must print 0 failed.
`steady_callers` defines failures; refused requests count as failed here too, because the server
keeps running.
"""

import argparse
import json
import tempfile
import time
import urllib.request
from pathlib import Path
from shutil import copytree

from benchmarks.drain_rounds import photo, ports_of
from benchmarks.service_process import RunningService, running_service
from benchmarks.steady_callers import SteadyCallers
from model.package import STUDENT_FOLDER

NAME = "swapped"


def load(service: RunningService, package: str) -> float:
    """Load a package as the model; returns the seconds until it answers requests."""
    began = time.monotonic()
    body = json.dumps({"parameters": {"package": package}}).encode()
    url = f"{service.http_url}/v2/repository/models/{NAME}/load"
    with urllib.request.urlopen(url, body) as answer:
        answer.read()
    return time.monotonic() - began


def resident_mib(service: RunningService) -> float:
    """Resident memory of the process in MiB."""
    status = Path(f"/proc/{service.pid}/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def swap_rounds(service: RunningService, rounds: int) -> SteadyCallers:
    """Swap under load; print the seconds, and the memory after some more load."""
    print(f"one model: {resident_mib(service):.0f} MiB")
    load(service, "first")
    with SteadyCallers(ports_of(service), photo(), model=NAME, num_each=4) as callers:
        wait_for_answers(callers, 200)
        print(f"two models, under load: {resident_mib(service):.0f} MiB")
        for index in range(rounds):
            seconds = load(service, ("second", "first")[index % 2])
            # Until the old model is unloaded and the new one has had some load.
            wait_for_answers(callers, 200)
            print(f"swap {index + 1}: {seconds:.1f} s, {resident_mib(service):.0f} MiB", flush=True)
    return callers


def wait_for_answers(callers: SteadyCallers, num_more: int) -> None:
    """Wait for a number of further answers."""
    enough = callers.num_answered + num_more
    while callers.num_answered < enough:
        time.sleep(0.01)


def main() -> None:
    """Run the rounds and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("flags", nargs="*", help="service flags, after --")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("first", "second"):
            copytree(STUDENT_FOLDER, Path(folder) / name)
        flags = ("--enable-management", f"--model-repository={folder}", *arguments.flags)
        with running_service(*flags) as service:
            tally = swap_rounds(service, arguments.rounds).tally
    failed = tally.failed + tally.refused
    print(f"\n{arguments.rounds} swaps, answered {dict(tally.answered)}")
    print(f"failed {failed.total()} {dict(failed)}")


if __name__ == "__main__":
    main()
