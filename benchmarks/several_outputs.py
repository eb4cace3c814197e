"""Compares one request for embeddings, masks, depth and normals with its parts.

Claim: a request for four outputs costs at most 1.15 times the vision tower plus the heads, in CPU
time, over REST and gRPC: the tower runs once, and decoding and the answer cost little.

The tower and the heads are timed in this process, on the runtime of the service with one thread.

Run: PYTHONPATH=clients/python python -m benchmarks.several_outputs PACKAGE [--rounds 10]
PACKAGE has dense heads, such as `b14-dpt` of `python -m benchmarks.official`.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from io import BytesIO
from typing import Final

import numpy as np
from PIL import Image

from benchmarks.service_process import running_service
from model.graphs import DENSE_TASKS
from model.package import open_package
from model.parity.inputs import gate_images
from model.runtime.load import load_runtime
from tipserve_client import Client

OUTPUTS: Final = ("cls1", "segmentation", "depth", "normals")
# A B/14 with heads starts in minutes on a busy machine.
LIMIT_S: Final = 1800.0


def least(run: Callable[[], object], clock: Callable[[], float], num_rounds: int) -> float:
    """CPU milliseconds of the cheapest run; the first, which allocates memory, does not count."""
    run()
    times = []
    for _ in range(num_rounds):
        began = clock()
        run()
        times.append(clock() - began)
    return 1000 * min(times)


def parts(package: str, precision: str, num_rounds: int) -> dict[str, float]:
    """CPU milliseconds of the tower and of each head alone."""
    opened = open_package(package)
    side = opened.manifest.map_side(opened.manifest.native_size)
    pixels_B3HW = np.random.default_rng(0).random((1, 3, side, side), np.float32)
    runtime = load_runtime(opened, device="cpu", precision=precision)

    def cost(run: Callable[[], object]) -> float:
        return least(run, time.process_time, num_rounds)

    tower = cost(lambda: runtime.encode_images(pixels_B3HW))
    found = {"tower": tower}
    for task in DENSE_TASKS:
        found[task] = cost(partial(runtime.estimate, task, pixels_B3HW)) - tower
    runtime.close()
    return found


def main() -> None:
    """Print the cost of the parts and of whole requests."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", help="folder of a package with dense heads")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    found = parts(options.package, options.precision, options.rounds)
    whole = sum(found.values())
    print(", ".join(f"{name} {ms:.1f} ms" for name, ms in found.items()), f"= {whole:.1f} ms")
    stream = BytesIO()
    Image.fromarray(gate_images()[0]).save(stream, "PNG")
    image = stream.getvalue()
    arguments = (f"--model={options.package}", f"--precision={options.precision}", "--lanes=1")
    limit = f"--request-timeout-s={LIMIT_S}"
    with running_service(*arguments, limit, start_limit_s=LIMIT_S) as service:
        for url in (service.http_url, f"grpc://127.0.0.1:{service.grpc_port}"):
            with Client(url, timeout_s=LIMIT_S) as client:
                ask = partial(client.embed_images, image, outputs=OUTPUTS)
                asked = least(ask, service.cpu_s, options.rounds)
            print(f"{url.partition(':')[0]}: {asked:.1f} ms, {asked / whole:.3f} of the parts")


if __name__ == "__main__":
    main()
