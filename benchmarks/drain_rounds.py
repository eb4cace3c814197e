"""SIGTERM under load, round after round: how many requests that were accepted failed?

`python -m benchmarks.drain_rounds [--rounds 20] [-- further flags of the service]`. Must print 0;
`steady_callers` defines what counts as failed.
"""

import argparse
import io
import signal
import time
from collections import Counter

import numpy as np
from PIL import Image

from tests.processes.service_process import RunningService, running_service
from tests.processes.steady_callers import SteadyCallers, Tally


def photo(side: int = 256) -> bytes:
    """A smooth JPEG."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).resize((side, side)).save(stream, "JPEG")
    return stream.getvalue()


def ports_of(service: RunningService) -> dict[str, int]:
    """Return the ports in the form `SteadyCallers` takes."""
    return {"http": service.http_port, "grpc": service.grpc_port}


def drain_round(service: RunningService, load_s: float) -> tuple[Tally, int]:
    """Return the callers' tally and the process's exit status."""
    with SteadyCallers(ports_of(service), photo()) as callers:
        while callers.num_answered < 100:
            time.sleep(0.01)
        time.sleep(load_s)
        service.process.send_signal(signal.SIGTERM)
        status = service.process.wait(60)
        callers.wait()
    return callers.tally, status


def main() -> None:
    """Run the rounds and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("flags", nargs="*", help="service flags, after --")
    arguments = parser.parse_args()
    total, statuses = Tally(), Counter[int]()
    for index in range(arguments.rounds):
        with running_service(*arguments.flags) as service:
            # Send SIGTERM at a different moment in each round.
            tally, status = drain_round(service, 0.037 * (index % 10))
        total.add(tally)
        statuses[status] += 1
        print(f"round {index + 1}: {tally}", flush=True)
    print(f"\n{arguments.rounds} rounds, exit statuses {dict(statuses)}")
    print(f"answered {dict(total.answered)}")
    print(f"refused with a clear answer {dict(total.refused)}")
    print(f"failed {total.failed.total()} {dict(total.failed)}")


if __name__ == "__main__":
    main()
