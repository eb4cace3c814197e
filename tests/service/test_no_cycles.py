"""The memory of a request is freed when it ends, without the garbage collector.

A reference cycle would keep bodies and images until the collector's rarest generation runs, which
on a busy server is hundreds of megabytes later.
"""

import asyncio
import base64
import gc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from typing import Any

import grpc
import httpx
import pytest

from service.grpc.generated import dense_pb2, embed_pb2, image_pb2, open_inference_pb2, segment_pb2
from service.grpc.generated.encoder_service_pb2_grpc import EncoderServiceStub
from service.grpc.generated.open_inference_pb2_grpc import GRPCInferenceServiceStub
from service.server import Server

Serving = Callable[..., AbstractAsyncContextManager[Server]]
Encode = Callable[..., bytes]
TIMEOUT_S = 20.0
TIMES = 5
NOT_AN_IMAGE = b"not an image"
# gRPC's context keeps what `abort` raised, and with it our last frame, which knows its RPC's name.
NOTHING_OF_A_REQUEST = {"service.grpc.limits.Rpc"}


@contextmanager
def left_to_the_collector() -> Iterator[Counter[str]]:
    """What the collector alone could free afterwards, of the service's own kinds."""
    found: Counter[str] = Counter()
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield found
        gc.collect()
        kinds = (f"{type(o).__module__}.{type(o).__qualname__}" for o in gc.garbage)
        found.update(kind for kind in kinds if kind.startswith(("service.", "uvicorn.")))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


async def over_rest(server: Server, image: bytes) -> None:
    url = f"http://127.0.0.1:{server.ports['http']}/v1/images"
    infer = f"http://127.0.0.1:{server.ports['http']}/v2/models/fake/infer"
    embeddings = f"http://127.0.0.1:{server.ports['http']}/v1/embeddings"
    data = [base64.b64encode(image).decode()]
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": data}
    async with httpx.AsyncClient(
        timeout=TIMEOUT_S, headers={"Content-Type": "image/png"}
    ) as client:
        for _ in range(TIMES):
            await client.post(f"{url}:embed", content=image)
            await client.post(f"{url}:segment?classes=dog,sky", content=image)
            await client.post(infer, json={"inputs": [tensor]})
            await client.post(f"{url}:normals", content=image)
            await client.post(embeddings, json={"input": ["dog", f"data:;base64,{data[0]}"]})


async def over_grpc(server: Server, image: bytes) -> None:
    images = [image_pb2.Image(encoded=image)]
    classes = [segment_pb2.SegmentClass(name="dog"), segment_pb2.SegmentClass(name="sky")]
    infer = open_inference_pb2.ModelInferRequest()
    tensor = infer.inputs.add(name="image", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(image)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.ports['grpc']}") as channel:
        stub: Any = EncoderServiceStub(channel)
        inference: Any = GRPCInferenceServiceStub(channel)
        for _ in range(TIMES):
            for rpc, request in (
                (stub.EmbedImages, embed_pb2.EmbedImagesRequest(images=images)),
                (
                    stub.SegmentImages,
                    segment_pb2.SegmentImagesRequest(images=images, classes=classes),
                ),
                (stub.EstimateNormals, dense_pb2.EstimateNormalsRequest(images=images)),
            ):
                with suppress(grpc.aio.AioRpcError):
                    await rpc(request, timeout=TIMEOUT_S)
            with suppress(grpc.aio.AioRpcError):
                await inference.ModelInfer(infer, timeout=TIMEOUT_S)
            stream = inference.ModelStreamInfer(timeout=TIMEOUT_S)
            await stream.write(infer)
            await stream.read()
            await stream.done_writing()
            await stream.read()


@pytest.mark.slow
@pytest.mark.parametrize("ask", [over_rest, over_grpc], ids=["rest", "grpc"])
@pytest.mark.parametrize("is_readable", [True, False])
async def test_a_request_leaves_no_cycle(
    serving: Serving, encode_image: Encode, ask: Any, is_readable: bool
) -> None:
    image = encode_image() if is_readable else NOT_AN_IMAGE
    async with serving() as server:
        await ask(server, image)
        await asyncio.sleep(0.1)
        with left_to_the_collector() as found:
            await ask(server, image)
            await asyncio.sleep(0.1)  # the server may end the last request after its answer
        # An object of every request is found TIMES times; one of an earlier test perhaps once.
        of_each = {kind for kind, count in found.items() if count >= TIMES}
        assert of_each <= NOTHING_OF_A_REQUEST, found
