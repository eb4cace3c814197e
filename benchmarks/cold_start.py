"""Start time of the service with a large package, and whether it is warm when ready.

`python -m benchmarks.cold_start [--work FOLDER] [--side 448] [--model MODEL] [--requests 100] [--
FLAGS]`. Starts the service with MODEL, or with B/14 with random weights (created in FOLDER first,
which takes minutes), and prints seconds, CPU seconds and peak memory until ready. Then it asks for
each dense head, sends images of every served shape, and compares the latency of the first answer
with the median of the later ones.
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

LIMIT_S = 600.0


def draw_image(height: int, width: int) -> bytes:
    """Return a JPEG of smooth noise in the model's size."""
    coarse = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((width, height)).save(file, "JPEG", quality=90)
    return file.getvalue()


EMBED = "/v1/images:embed?outputs=cls1&fit=aspect"
HEADS = {
    "depth": "/v1/images:depth",
    "normals": "/v1/images:normals",
    "segmentation": "/v1/images:segment?classes=model",
}


def ask(connection: http.client.HTTPConnection, image: bytes, path: str = EMBED) -> float:
    """Send one request; returns milliseconds."""
    began = time.perf_counter()
    connection.request("POST", path, image, {"Content-Type": "image/jpeg"})
    answer = connection.getresponse()
    answer.read()
    if answer.status != 200:
        raise RuntimeError(f"the service answered {answer.status}")
    return 1000 * (time.perf_counter() - began)


def ask_heads(service: RunningService, model: dict[str, Any], image: bytes) -> None:
    """Ask for each dense head of the model twice, and print seconds and CPU seconds."""
    connection = http.client.HTTPConnection("127.0.0.1", service.http_port)
    for head in sorted(HEADS.keys() & set(model["outputs"])):
        for _ in range(2):
            cpu_s = service.cpu_s()
            took_s = ask(connection, image, HEADS[head]) / 1000
            print(f"{head}: {took_s:.1f} s, {service.cpu_s() - cpu_s:.1f} CPU s")


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
    parser.add_argument("--model", help="as the service takes it; instead of B/14 of --work")
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("flags", nargs="*", help="service flags, after `--`")
    options = parser.parse_args()
    source = options.model or random_b14(options.work, options.side).path
    began = time.monotonic()
    with running_service(f"--model={source}", *options.flags, start_limit_s=LIMIT_S) as service:
        seconds, cpu_s = time.monotonic() - began, service.cpu_s()
        peak_mb, now_mb = (status_mb(service.pid, name) for name in ("VmHWM", "VmRSS"))
        with urllib.request.urlopen(f"{service.http_url}/v1/models") as answer:
            model = json.load(answer)["data"][0]
        print(f"{platform.machine()}: {model['id']}, {model['runtime']} {model['precision']}")
        print(
            f"ready after {seconds:.1f} s and {cpu_s:.1f} CPU s; peak {peak_mb:.0f} MB, then "
            f"{now_mb:.0f} MB"
        )
        ask_heads(service, model, draw_image(model["native_size"], model["native_size"]))
        compare(service, model, options.requests)
        print(f"at the end {status_mb(service.pid, 'VmRSS'):.0f} MB")


if __name__ == "__main__":
    main()
