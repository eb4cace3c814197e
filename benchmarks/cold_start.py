"""Start time of the service with a large package, and whether it is warm when ready.

`python -m benchmarks.cold_start [--work FOLDER] [--side 448] [--requests 100] [-- FLAGS]`. Starts
the service with B/14 with random weights (created in FOLDER first, which takes minutes) and prints
seconds and peak memory until ready. Then it sends images of every served shape and compares the
latency of the first answer with the median of the later ones.
"""

import argparse
import http.client
import io
import json
import platform
import statistics
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.random_model import random_b14
from benchmarks.service_process import RunningService, running_service


def draw_image(height: int, width: int) -> bytes:
    """Return a JPEG of smooth noise in the model's size."""
    coarse = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((width, height)).save(file, "JPEG", quality=90)
    return file.getvalue()


def ask(connection: http.client.HTTPConnection, image: bytes) -> float:
    """Send one request; returns milliseconds."""
    began = time.perf_counter()
    path = "/v1/images:embed?outputs=cls1&fit=aspect"
    connection.request("POST", path, image, {"Content-Type": "image/jpeg"})
    answer = connection.getresponse()
    answer.read()
    if answer.status != 200:
        raise RuntimeError(f"the service answered {answer.status}")
    return 1000 * (time.perf_counter() - began)


def status_mb(pid: int, name: str) -> float:
    """Read a field of /proc/PID/status, such as VmHWM, in MB."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"/proc/{pid}/status has no {name}")


def compare(service: RunningService, model: dict[str, Any], num_requests: int) -> None:
    """Measure every shape: the native one first, the others with a tenth of the requests."""
    connection = http.client.HTTPConnection("127.0.0.1", service.http_port)
    native = model["native_size"]
    for bucket in model["buckets"]:
        height, width = bucket["height"], bucket["width"]
        if min(height, width) != native:
            continue
        is_native = height == width == native
        image = draw_image(height, width)
        times_ms = [ask(connection, image) for _ in range(num_requests if is_native else 10)]
        later = statistics.median(times_ms[1:])
        print(
            f"{height}x{width}: first {times_ms[0]:.0f} ms, median of the next "
            f"{len(times_ms) - 1} {later:.0f} ms (slowest {max(times_ms[1:]):.0f}), "
            f"last {times_ms[-1]:.0f} ms: first/median {times_ms[0] / later:.2f}"
        )


def main() -> None:
    """Create the model, start the service and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/random"))
    parser.add_argument("--side", type=int, default=448)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("flags", nargs="*", help="service flags, after `--`")
    options = parser.parse_args()
    package = random_b14(options.work, options.side)
    size_mb = sum(entry.size_bytes for entry in package.manifest.files.values()) / 1e6
    began = time.monotonic()
    with running_service(f"--model={package.path}", *options.flags) as service:
        seconds = time.monotonic() - began
        peak_mb, now_mb = (status_mb(service.pid, name) for name in ("VmHWM", "VmRSS"))
        with urllib.request.urlopen(f"{service.http_url}/v1/models") as answer:
            model = json.load(answer)["data"][0]
        print(
            f"{platform.machine()}: {package.manifest.name} of {size_mb:.0f} MB, "
            f"{model['runtime']} {model['precision']}"
        )
        print(f"ready after {seconds:.1f} s; peak {peak_mb:.0f} MB, then {now_mb:.0f} MB")
        compare(service, model, options.requests)


if __name__ == "__main__":
    main()
