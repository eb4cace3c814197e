"""Callers of whom a service must refuse most: too many, too hurried, or unknown."""

import base64
import ssl
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Final

import grpc
import httpx

from service.grpc.generated.embed_pb2 import EmbedTextsRequest
from service.grpc.generated.encoder_service_pb2_grpc import EncoderServiceStub

LIMIT_S: Final = 60.0
NUM_CALLERS: Final = 6
NUM_HURRIED: Final = 2
# Less than so many texts take, and enough to be told so: which of these is, the machine decides.
HURRIES_S: Final = (0.02, 0.05, 0.1, 0.2)
NUM_TEXTS: Final = 1024


@contextmanager
def flooding(
    url: str, context: ssl.SSLContext, key: str, images: Sequence[bytes]
) -> Iterator[list[int]]:
    """Callers who send the same images over and over; gives the statuses that they get."""
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
    """Send an RPC with more texts than there is time for, new ones for each number."""
    request = EmbedTextsRequest(texts=[f"text {number} {index}" for index in range(NUM_TEXTS)])
    with grpc.insecure_channel(address) as channel:
        # The time is for the server, and not for connecting.
        grpc.channel_ready_future(channel).result(LIMIT_S)
        with suppress(grpc.RpcError):
            timeout_s = HURRIES_S[number % len(HURRIES_S)]
            EncoderServiceStub(channel).EmbedTexts(request, timeout=timeout_s)
