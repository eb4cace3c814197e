"""Constant load over REST and gRPC, and on one gRPC stream; every answer is compared.

Every missing or wrong answer is a failure: behind a proxy no request should be refused. Only the
stream may break, because its client reopens it and loses nothing.
"""

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

import grpc
import numpy as np
from numpy.typing import NDArray

from service.grpc.generated import embed_pb2, image_pb2
from service.grpc.generated.encoder_service_pb2_grpc import EncoderServiceStub
from tipserve_client import Client, TipserveError

LIMIT_S: Final = 30.0
SLOWLY_S: Final = 0.8
NUM_SLOW: Final = 20
# Offset between the first requests of two callers; otherwise they would send and pause in step.
STAGGER_S: Final = 0.04
# Rounding varies with the batch by less than this; embeddings of other images differ by more.
MIN_COSINE: Final = 0.9999
# No retries in the channel either, not even of RPCs that never reached the server.
OPTIONS: Final = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))
Vector = NDArray[np.float32]
Ask = Callable[[bytes], Vector]


class WrongAnswer(Exception):
    """The answer differs from the expected embedding."""


class ConstantCallers:
    """Threads that send requests with pauses, as a context.

    Two REST callers keep their connection and one does not. Twenty more send their bodies slowly,
    so that most of them are in flight at any moment at little cost. Three gRPC callers have their
    own channels and two share one. One sends images on an endless stream.

    Args:
        ports: Ports by `http` and `grpc`.
        images: Encoded images, all different.
        expected: First embedding of each image.
        pause_s: Pause of a caller between an answer and its next request.
    """

    def __init__(
        self,
        ports: Mapping[str, int],
        images: Sequence[bytes],
        expected: Sequence[Vector],
        *,
        pause_s: float = 0.15,
    ) -> None:
        self.answered: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self._http_port = ports["http"]
        self._grpc_address = f"127.0.0.1:{ports['grpc']}"
        self._images, self._expected = images, expected
        self._pause_s = pause_s
        self._is_over = threading.Event()
        self._lock = threading.Lock()
        shared = grpc.insecure_channel(self._grpc_address, OPTIONS)
        self._channels = [grpc.insecure_channel(self._grpc_address, OPTIONS) for _ in range(3)]
        self._channels.append(shared)
        self._connections = [
            KeptConnection(self._http_port, sending_s=sending_s)
            for sending_s in (0.0, 0.0, *[SLOWLY_S] * NUM_SLOW)
        ]
        kinds: list[tuple[str, Ask]] = [("REST", connection) for connection in self._connections]
        kinds.append(("REST", self._over_new_connection))
        kinds += [("gRPC", over_channel(channel)) for channel in (*self._channels, shared)]
        self._threads = [
            threading.Thread(target=self._ask_again, args=(place, *kind), daemon=True)
            for place, kind in enumerate(kinds)
        ]
        self._threads.append(threading.Thread(target=self._stream, daemon=True))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(LIMIT_S)
        if any(thread.is_alive() for thread in self._threads):
            self._count(self.failed, "hung")
        for channel in self._channels:
            channel.close()
        for connection in self._connections:
            connection.close()

    @property
    def num_asked(self) -> int:
        """Number of finished requests, successful or not."""
        with self._lock:
            return self.answered.total() + self.failed.total()

    def _count(self, what: Counter[str], name: str) -> None:
        with self._lock:
            what[name] += 1

    def _ask_again(self, place: int, protocol: str, ask: Ask) -> None:
        number = place
        self._is_over.wait(place * STAGGER_S)
        while not self._is_over.wait(self._pause_s):
            number = (number + 1) % len(self._images)
            try:
                self._compare(ask(self._images[number]), number)
            except grpc.RpcError as error:
                self._count(self.failed, f"{protocol} {error.code().name}: {error.details()}")
            except Exception as error:
                self._count(self.failed, f"{protocol} {type(error).__name__}: {error}")
            else:
                self._count(self.answered, protocol)

    def _over_new_connection(self, image: bytes) -> Vector:
        connection = KeptConnection(self._http_port)
        try:
            return connection(image)
        finally:
            connection.close()

    def _stream(self) -> None:
        num_answered = 0
        with Client(f"grpc://{self._grpc_address}") as client:
            try:
                for item in client.stream_images(self._endless(), outputs=["cls1"], window=4):
                    if item.error is not None:
                        raise item.error
                    assert item.value is not None
                    assert item.value.cls1 is not None
                    if item.index != num_answered:
                        raise WrongAnswer(f"number {item.index} in the place of {num_answered}")
                    self._compare(item.value.cls1, item.index % len(self._images))
                    num_answered += 1
                    self._count(self.answered, "stream")
            except (TipserveError, WrongAnswer) as error:
                self._count(self.failed, f"stream {type(error).__name__}: {error}")

    def _endless(self) -> Iterator[bytes]:
        number = 0
        while not self._is_over.wait(self._pause_s):
            yield self._images[number % len(self._images)]
            number += 1

    def _compare(self, given: Vector, number: int) -> None:
        expected = self._expected[number]
        cosine = given @ expected / (np.linalg.norm(given) * np.linalg.norm(expected))
        if not cosine >= MIN_COSINE:
            raise WrongAnswer(f"cosine {cosine:.4f} to what was expected")


class KeptConnection:
    """Sends requests over one HTTP connection; reopens it after a failure or `Connection: close`.

    Args:
        port: Port on loopback.
        sending_s: Pause between the two halves of the body.
    """

    def __init__(self, port: int, *, sending_s: float = 0.0) -> None:
        self._sending_s = sending_s
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)

    def __call__(self, image: bytes) -> Vector:
        """Return the image's first embedding.

        Raises:
            OSError: The connection broke or could not be opened.
            http.client.HTTPException: The connection broke, or the status is not 200.
        """
        try:
            headers = {"Content-Type": "image/png", "Content-Length": str(len(image))}
            path = "/v1/images:embed?outputs=cls1"
            self._connection.request("POST", path, self._halves(image), headers)
            answer = self._connection.getresponse()
            body = answer.read()
            if answer.status != 200:
                # The answer may arrive before the whole body is sent; the connection is unusable
                # then.
                raise http.client.HTTPException(f"{answer.status} {body[:200].decode()}")
        except BaseException:
            self.close()
            raise
        return np.array(json.loads(body)["data"][0]["cls1"], np.float32)

    def _halves(self, image: bytes) -> Iterator[bytes]:
        middle = len(image) // 2
        yield image[:middle]
        time.sleep(self._sending_s)
        yield image[middle:]

    def close(self) -> None:
        """Close it."""
        self._connection.close()


def over_channel(channel: grpc.Channel) -> Ask:
    """Sends requests over a gRPC channel."""
    stub: Any = EncoderServiceStub(channel)

    def ask(image: bytes) -> Vector:
        request = embed_pb2.EmbedImagesRequest(
            images=[image_pb2.Image(encoded=image)], outputs=[embed_pb2.IMAGE_OUTPUT_CLS1]
        )
        answer = stub.EmbedImages(request, timeout=LIMIT_S)
        return np.frombuffer(answer.embeddings[0].cls1.data, np.float32)

    return ask
