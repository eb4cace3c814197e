"""Callers of a service: steady ones over every protocol, and a flood that is mostly refused."""

import base64
import itertools
import ssl
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, Final

import grpc
import httpx
import numpy as np
import tritonclient.grpc

from service.grpc.generated.embed_pb2 import EmbedTextsRequest
from service.grpc.generated.encoder_service_pb2_grpc import EncoderServiceStub
from tests.end_to_end.conftest import Service

LIMIT_S: Final = 60.0
MODEL: Final = "tipserve-student"
PAUSE_S: Final = 0.05
TEXTS: Final = {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["a dog", "the sky"]}
NUM_CALLERS: Final = 6
NUM_HURRIED: Final = 2
# Deadlines to try: one must be shorter than the texts take, but long enough for the answer, which
# depends on the machine.
HURRIES_S: Final = (0.02, 0.05, 0.1, 0.2)
NUM_TEXTS: Final = 1024


def ask_everything(service: Service, images: Sequence[bytes], number: int) -> Iterator[None]:
    """Send requests over each protocol, and two with errors, with pauses between them."""

    def post(route: str, body: Any) -> int:
        url = f"http://127.0.0.1:{service.ports['http']}{route}"
        return httpx.post(url, json=body, timeout=LIMIT_S).status_code

    segment = {"images": images, "classes": ["dog", "sky", f"thing {number}"]}
    assert service.over_rest("segment_images", segment).status == "200"
    assert service.over_rest("embed_images", {"images": images}).status == "200"
    assert service.over_grpc("embed_images", {"images": images}).status == "OK"
    assert service.over_stream("embed_images", {"images": images}).status == "OK"
    yield
    assert service.over_grpc("embed_images", {"images": [b"?"]}).status != "OK"
    assert post("/v1/image:embed", {}) == 404
    yield
    assert post(f"/v2/models/{MODEL}/infer", {"inputs": [TEXTS]}) == 200
    given = tritonclient.grpc.InferInput("text", [1], "BYTES")
    given.set_data_from_numpy(np.array([b"a dog"], dtype=np.object_))
    address = f"127.0.0.1:{service.ports['grpc']}"
    with tritonclient.grpc.InferenceServerClient(address) as client:
        client.infer(MODEL, [given], client_timeout=LIMIT_S)
    yield
    assert post("/v1/embeddings", {"model": MODEL, "input": ["a dog"]}) == 200
    yield


@contextmanager
def calling(service: Service, images: Sequence[bytes]) -> Iterator[None]:
    """Send all these requests in a loop during the block; unexpected results raise."""
    stop = threading.Event()

    def ask() -> None:
        for number in itertools.count():
            for _ in ask_everything(service, images, number):
                if stop.wait(PAUSE_S):
                    return

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        try:
            yield
        finally:
            stop.set()
    asking.result()


@contextmanager
def flooding(
    url: str, context: ssl.SSLContext, key: str, images: Sequence[bytes]
) -> Iterator[list[int]]:
    """Send the same images repeatedly; yields the statuses."""
    stop = threading.Event()
    statuses: list[int] = []
    body = {"images": [base64.b64encode(image).decode() for image in images]}

    def ask(number: int) -> None:
        headers = {"X-Api-Key": key}
        if number < NUM_HURRIED:
            headers["X-Request-Timeout-Ms"] = "1"
        with httpx.Client(verify=context, timeout=LIMIT_S, headers=headers) as client:
            while not stop.is_set():
                statuses.append(client.post(url, json=body).status_code)

    with ThreadPoolExecutor(NUM_CALLERS) as pool:
        asking = pool.map(ask, range(NUM_CALLERS))
        try:
            yield statuses
        finally:
            stop.set()
        list(asking)


def ask_hurriedly(address: str, number: int) -> None:
    """Send an RPC with more texts than its deadline allows, new ones per number."""
    request = EmbedTextsRequest(texts=[f"text {number} {index}" for index in range(NUM_TEXTS)])
    with grpc.insecure_channel(address) as channel:
        # Connect first, so that the deadline covers only the server.
        grpc.channel_ready_future(channel).result(LIMIT_S)
        with suppress(grpc.RpcError):
            timeout_s = HURRIES_S[number % len(HURRIES_S)]
            EncoderServiceStub(channel).EmbedTexts(request, timeout=timeout_s)
