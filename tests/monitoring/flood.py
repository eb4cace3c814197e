"""Callers that a service must mostly refuse: too many, short deadlines, or unknown keys."""

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
# Deadlines to try: one must be shorter than the texts take, but long enough for the answer, which
# depends on the machine.
HURRIES_S: Final = (0.02, 0.05, 0.1, 0.2)
NUM_TEXTS: Final = 1024


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
