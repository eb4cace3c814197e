"""The bundled model's real runtime fails under a running server, and the server reports it."""

import asyncio
import io

import httpx
import numpy as np
import pytest
from PIL import Image

from service.server import Server
from service.settings import Settings

LIMIT_S = 60.0


async def embed(server: Server, image: bytes) -> httpx.Response:
    url = f"http://127.0.0.1:{server.ports['http']}/v1/images:embed"
    async with httpx.AsyncClient(timeout=LIMIT_S) as client:
        return await client.post(url, content=image, headers={"Content-Type": "image/png"})


@pytest.fixture
def image() -> bytes:
    """Some colours."""
    colours = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(colours).resize((112, 112)).save(stream, "PNG")
    return stream.getvalue()


async def status(server: Server, probe: str) -> int:
    async with httpx.AsyncClient(timeout=LIMIT_S) as client:
        url = f"http://127.0.0.1:{server.ports['http']}/v2/health/{probe}"
        return (await client.get(url)).status_code


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
async def test_a_runtime_that_dies_ends_readiness_and_liveness(runtime: str, image: bytes) -> None:
    ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    settings = Settings.model_validate(
        {**ports, "host": "127.0.0.1", "runtime": runtime, "lanes": 1, "warm_up_limit_s": 0}
    )
    server = Server(settings)
    running = asyncio.ensure_future(server.run())
    try:
        async with asyncio.timeout(LIMIT_S):
            await server.ready.wait()
            assert (await embed(server, image)).status_code == 200
            assert await status(server, "live") == await status(server, "ready") == 200
            (lane,) = server.models.find(None)._lanes
            lane.runtime.close()  # every later call raises
            assert (await embed(server, image)).status_code == 500
            while await status(server, "live") != 503:
                await asyncio.sleep(0.01)
            assert await status(server, "ready") == 503
            assert (await embed(server, image)).status_code == 503
    finally:
        server.request_stop()
        await running
