"""Throughput of the real service relative to the bare runtime with as many lanes."""

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmarks.cold_start import draw_image
from benchmarks.load import RestConnection, rest_request, send
from benchmarks.on_gpu.contestants import CONTESTANTS, Contestant, Setup
from benchmarks.service_process import RunningService, running_service
from model.graphs import Precision
from model.package import ModelPackage
from service.settings import Settings

Row = dict[str, Any]
# Runtime names of the service; it does not serve torch-compile.
SERVED = {"tensorrt": "tensorrt", "onnx": "onnx", "torch-eager": "torch"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Load for both sides.

    Attributes:
        num_lanes: Lanes per side.
        batch: Batch size of the bare side, and the service's maximum.
        side: Side of the images in pixels.
        seconds: Duration.
    """

    num_lanes: int
    batch: int
    side: int
    seconds: float


def measure(setup: Setup, name: str, precision: Precision, *, side: int, seconds: float) -> Row:
    """Compare images per second over REST and of the bare runtime; a note if one cannot run.

    Both sides have the same number of lanes. The bare side has decoded images and full batches, so
    the quotient shows the whole cost of serving.
    """
    what: Row = {"contestant": name, "precision": precision, "side": side}
    if name not in SERVED:
        return what | {"note": "the service does not serve this"}
    num_lanes = 2 if setup.place.is_gpu else 1
    load = Load(num_lanes=num_lanes, batch=setup.max_batch, side=side, seconds=seconds)
    try:
        bare = _bare(partial(CONTESTANTS[name], setup, precision), load)
        served = _served(setup.package, SERVED[name], precision, load)
    # A failure becomes a note, and the benchmark continues.
    except Exception as error:
        return what | {"note": f"{type(error).__name__}: {error}"}
    return what | {
        "lanes": num_lanes,
        "bare_images_per_s": bare,
        "served_images_per_s": served,
        "efficiency": served / bare,
    }


def _bare(make: Callable[[], Contestant], load: Load) -> float:
    """Images per second of full batches on all lanes."""
    lanes = [make() for _ in range(load.num_lanes)]
    shape = (load.batch, 3, load.side, load.side)
    pixels_B3HW = np.random.default_rng(0).random(shape, dtype=np.float32)
    counts = [0] * load.num_lanes
    for lane in lanes:
        for _ in range(2):
            lane.encode(pixels_B3HW)
    began = time.perf_counter()
    until = began + load.seconds

    def work(index: int) -> None:
        while time.perf_counter() < until or not counts[index]:
            lanes[index].encode(pixels_B3HW)
            counts[index] += load.batch

    threads = [threading.Thread(target=work, args=(index,)) for index in range(load.num_lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rate = sum(counts) / (time.perf_counter() - began)
    for lane in lanes:
        lane.close()
    return rate


def _served(package: ModelPackage, runtime: str, precision: Precision, load: Load) -> float:
    """Images per second of the service, with more clients than fit into its batches."""
    flags = [f"--model={package.path}", f"--runtime={runtime}", f"--lanes={load.num_lanes}"]
    flags.append(f"--max-batch-images={load.batch}")
    if "precision" in Settings.model_fields:
        flags.append(f"--precision={precision}")
    with running_service(*flags) as service:
        return asyncio.run(_ask(service, load))


async def _ask(service: RunningService, load: Load) -> float:
    num_clients = 2 * load.num_lanes * load.batch
    target = f"/v1/images:embed?outputs=cls1&resolution={load.side}"
    request = rest_request(target, draw_image(load.side, load.side))
    connections = [await RestConnection.open(service.http_port) for _ in range(num_clients)]
    asks = [partial(_ask_once, connection, request) for connection in connections]
    await send(asks, total=2 * num_clients)
    done = await send(asks, seconds=load.seconds)
    for connection in connections:
        connection.close()
    await asyncio.sleep(0)  # lets the event loop close the connections
    if set(done.statuses) != {"200"}:
        raise RuntimeError(f"not every image was answered: {dict(done.statuses)}")
    return done.num_answers / done.wall_s


async def _ask_once(connection: RestConnection, request: bytes, _number: int) -> str:
    return await connection.ask(request)
