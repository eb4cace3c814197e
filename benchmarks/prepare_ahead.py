"""Effect of assembling the next batch in a thread on this CPU, in wall and CPU time.

Run: python -m benchmarks.prepare_ahead [IMAGES]. The bundled student runs with a queue that is
never empty. Runs with and without the thread alternate; the median of their ratios is printed.
"""

import statistics
import sys
import threading
import time
from collections.abc import Sequence

import numpy as np

from model.package import open_package
from service.lanes.batch_queue import BatchRules
from service.lanes.batching import Batcher
from service.lanes.work import BatchLimits, Bucket, WorkItem
from service.models.conversion import ModelSource
from service.models.loading import load_lanes
from service.monitoring.metrics import Metrics
from service.settings import Settings

ROUNDS = 7
LIMIT_S = 120.0


def main(arguments: Sequence[str]) -> None:
    """Print the ratios."""
    num_images = int(arguments[0]) if arguments else 200
    package = open_package("bundled-student")
    loaded = load_lanes(package, Settings(), ModelSource("bundled-student"))
    side = package.manifest.native_size
    pixels = np.random.default_rng(0).random((3, side, side), np.float32)
    num_patches = (side // package.manifest.patch_size) ** 2
    item = WorkItem(bucket=Bucket("image", (side, side)), cost=num_patches, payload=pixels)
    limits = BatchLimits(max_items=loaded.warm.max_images, max_cost=4096)

    def spend(prepare_ahead: bool) -> tuple[float, float]:
        rules = BatchRules(limits={"image": limits, "text": limits}, prepare_ahead=prepare_ahead)
        batcher = Batcher(loaded.lanes, rules=rules, metrics=Metrics())
        batcher.start()
        wall, cpu = time.perf_counter(), time.process_time()
        done = threading.Semaphore(0)
        for future in batcher.queue.put([item] * num_images):
            future.when_done(lambda _: done.release())
        if not all(done.acquire(timeout=LIMIT_S) for _ in range(num_images)):
            raise TimeoutError("the lanes are too slow")
        spent = time.perf_counter() - wall, time.process_time() - cpu
        batcher.stop(LIMIT_S)
        return spent

    spend(False)
    pairs = [(spend(False), spend(True)) for _ in range(ROUNDS)]
    wall = [off[0] / on[0] for off, on in pairs]
    cpu = [off[1] / on[1] for off, on in pairs]
    print(f"{len(loaded.lanes)} lanes, batches of {limits.max_items}, {num_images} images")
    for name, ratios in (("wall time", wall), ("CPU time", cpu)):
        low, high = min(ratios), max(ratios)
        print(f"{name}, off over on: {statistics.median(ratios):.3f} ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main(sys.argv[1:])
