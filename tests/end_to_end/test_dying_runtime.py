"""The bundled model's real runtime fails under a running server, and the server recovers."""

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


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
async def test_a_runtime_that_dies_is_reloaded_and_computes_the_same(
    runtime: str, image: bytes
) -> None:
    ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    settings = Settings.model_validate(
        {**ports, "host": "127.0.0.1", "runtime": runtime, "lanes": 1, "warm_up_limit_s": 0}
    )
    server = Server(settings)
    running = asyncio.ensure_future(server.run())
    try:
        async with asyncio.timeout(LIMIT_S):
            await server.ready.wait()
            before = await embed(server, image)
            (lane,) = server.models.find(None)._lanes
            lane.runtime.close()  # every later call raises
            assert (await embed(server, image)).status_code == 500
            while (after := await embed(server, image)).status_code != 200:
                assert after.status_code in {500, 503}
                await asyncio.sleep(0.01)
        assert server.metrics.registry.get_sample_value("tipserve_lane_rebuilds_total") == 1
        first, second = (answer.json()["data"][0]["cls1"] for answer in (before, after))
        np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)
    finally:
        server.request_stop()
        await running
