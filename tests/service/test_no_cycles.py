"""The memory of a request is freed when it ends, without the garbage collector.

A reference cycle would keep bodies and images until the collector's rarest generation runs, which
on a busy server is hundreds of megabytes later.
"""

import asyncio
import base64
import gc
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import pytest

from service.server import Server
from tests.service.callers import ask_grpc, ask_rest, ask_stream, http_client
from tests.service.conftest import Encode, FakeRuntime, Serving

Send = Callable[[Server, bytes], Awaitable[None]]
TIMES = 5
# gRPC's context keeps what `abort` raised, and with it our last frame, which knows its RPC's name.
NOTHING_OF_A_REQUEST = {"service.grpc.limits.Rpc"}


@contextmanager
def left_to_the_collector() -> Iterator[Counter[str]]:
    """Counts, of our own kinds, what the collector alone can free after the block."""
    found: Counter[str] = Counter()
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    logging.disable()  # pytest keeps log records, and so logged errors and their frames
    try:
        yield found
        gc.collect()
        kinds = (f"{type(o).__module__}.{type(o).__qualname__}" for o in gc.garbage)
        found.update(kind for kind in kinds if kind.startswith(("service.", "uvicorn.")))
    finally:
        logging.disable(logging.NOTSET)
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


async def over_rest(server: Server, image: bytes) -> None:
    data = base64.b64encode(image).decode()
    for _ in range(TIMES):
        for route in ("embed", "segment", "infer", "normals"):
            await ask_rest(server, image, route)
        async with http_client(server) as client:
            await client.post("/v1/embeddings", json={"input": ["dog", f"data:;base64,{data}"]})


async def over_grpc(server: Server, image: bytes) -> None:
    for _ in range(TIMES):
        for route in ("embed", "segment", "infer", "normals"):
            await ask_grpc(server, image, route)
        await ask_stream(server, image, "infer")


@pytest.mark.slow
@pytest.mark.parametrize("send", [over_rest, over_grpc], ids=["rest", "grpc"])
@pytest.mark.parametrize("case", ["good", "not an image", "failing batch"])
async def test_a_request_leaves_no_cycle(
    serving: Serving, encode_image: Encode, runtime: FakeRuntime, send: Send, case: str
) -> None:
    image = b"not an image" if case == "not an image" else encode_image()
    async with serving() as server:
        runtime.fault = "raise" if case == "failing batch" else ""
        await send(server, image)
        await asyncio.sleep(0.1)
        with left_to_the_collector() as found:
            await send(server, image)
            await asyncio.sleep(0.1)  # the server may end the last request after its answer
        # An object of every request is found TIMES times; one of an earlier test perhaps once.
        of_each = {kind for kind, count in found.items() if count >= TIMES}
        assert of_each <= NOTHING_OF_A_REQUEST, found
