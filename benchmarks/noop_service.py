"""The service with a no-op model and decoder, and a plain endpoint, to measure overhead.

The benchmarks run it as a process:
python -m benchmarks.noop_service tipserve|plain PORTS_FILE
"""

import asyncio
import json
import signal
import sys
from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
import uvloop
from fastapi import FastAPI, Request
from numpy.typing import NDArray

from model.graphs import PATCH_OUTPUTS, DenseTask, PatchOutput, Precision
from model.package import ModelPackage
from model.runtime.base import Device, LaneShare, VisionOutput
from model.runtime.choice import RuntimeChoice
from model.runtime.load import RUNTIMES
from service.images import ImagePreparer, PreparedImage, SizeRule
from service.messages import ImageInput
from service.monitoring.log import configure_logging
from service.rest.server import listen
from service.server import Server
from service.settings import Settings


@cache
def noise(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return normal noise, created once per shape and read-only."""
    array = np.random.default_rng(0).standard_normal(shape, np.float32)
    array.flags.writeable = False
    return array


class NoopRuntime:
    """Runtime that returns arrays of the right shapes at once."""

    name = "noop"
    precision: Precision = "fp32"
    device: Device = "cpu"
    tasks: tuple[DenseTask, ...] = ()
    takes_bytes = False

    def __init__(self, package: ModelPackage, choice: RuntimeChoice, share: LaneShare) -> None:
        """Take the arguments of every runtime factory."""
        self._dim = package.manifest.embed_dim

    def encode_images(
        self,
        pixels_B3HW: NDArray[np.float32],
        tasks: Sequence[DenseTask] = (),
        patch_outputs: Collection[PatchOutput] = PATCH_OUTPUTS,
    ) -> VisionOutput:
        """Return the same noise for every image; as JSON it is as long as real embeddings."""
        batch, _, height, width = pixels_B3HW.shape
        rows, columns = height // 14, width // 14
        patches_BND = noise((batch, rows * columns, self._dim))
        cls_BD = patches_BND[:, 0]
        return VisionOutput(
            cls1_BD=cls_BD,
            cls2_BD=cls_BD,
            patches_BND=patches_BND,
            values_BND=patches_BND,
            grid_hw=(rows, columns),
        )

    def encode_texts(
        self, token_ids_BL: NDArray[np.int64], mask_BL: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Ones."""
        return np.ones((len(token_ids_BL), self._dim), np.float32)

    def release_idle_memory(self) -> None:
        """Nothing is kept."""

    def estimate(self, task: DenseTask, pixels_B3HW: NDArray[np.float32]) -> NDArray[np.float32]:
        """Not supported: no dense heads."""
        raise ValueError(f"no head for {task}")

    def interrupt(self) -> None:
        """Do nothing: calls return at once."""

    def close(self) -> None:
        """Nothing to free."""


class NoopPreparer(ImagePreparer):
    """Preparer that returns the same black image of the wanted size for every body."""

    def measure(
        self, image: ImageInput, rules: Sequence[SizeRule], *, param: str
    ) -> tuple[tuple[int, int], list[int], int]:
        """Return the size and patch counts of that image, which takes no memory to decode."""
        side = rules[0].resolution
        return (side, side), [r.num_patches((r.resolution, r.resolution)) for r in rules], 0

    def prepare(
        self, image: ImageInput, rules: Sequence[SizeRule], *, param: str, has_guide: bool = False
    ) -> list[PreparedImage]:
        """That image."""
        side = rules[0].resolution
        return [
            PreparedImage(pixels_3HW=empty_planes(r.resolution), size_hw=(side, side))
            for r in rules
        ]


@cache
def empty_planes(side: int) -> NDArray[np.float32]:
    """Return a black image, float32 [3, side, side]."""
    return np.zeros((3, side, side), np.float32)


def plain_app() -> FastAPI:
    """Return an app with one endpoint that reads the body."""
    app = FastAPI()

    @app.post("/plain")
    async def plain(request: Request) -> dict[str, int]:
        return {"bytes": len(await request.body())}

    return app


async def serve_plain(ports_file: Path) -> None:
    """Run uvicorn with its defaults on a free port until SIGTERM."""
    listening = listen("127.0.0.1", 0)
    config = uvicorn.Config(plain_app(), access_log=False, log_level="warning", ws="none")
    ports_file.write_text(json.dumps({"http": listening.getsockname()[1]}), encoding="utf-8")
    await uvicorn.Server(config).serve([listening])


async def serve_noop(ports_file: Path) -> None:
    """Run the whole service with a no-op runtime and a no-op decoder."""
    log = configure_logging("INFO")
    ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0, "ports_file": ports_file}
    fixed = {"runtime": "onnx", "host": "127.0.0.1", "image_cache_bytes": 0}
    settings = Settings.model_validate({**fixed, **ports})
    RUNTIMES["onnx"] = NoopRuntime
    server = Server(settings, log=log)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.request_stop)
    plane: Any = server.plane
    plane._images._preparer = NoopPreparer(
        plane.image_limits, max_patches=settings.max_batch_patches
    )
    await server.run()


def main(kind: str, ports_file: str) -> None:
    """Run one of the two servers."""
    serve = {"plain": serve_plain, "tipserve": serve_noop}[kind]
    uvloop.run(serve(Path(ports_file)))


if __name__ == "__main__":
    main(*sys.argv[1:])
