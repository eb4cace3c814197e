"""Callers over both protocols that send requests in a loop and count the outcomes.

A request succeeds if it was answered. It counts as refused if the caller can tell that it was not
processed: the connection was refused, or the server itself answered 503 or UNAVAILABLE. Anything
else is a failure: a connection that breaks or closes after the request was sent (even where HTTP
allows a retry), or a cancelled RPC.
"""

import http.client
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import grpc

from service.grpc.generated import embed_pb2, image_pb2
from service.grpc.generated.encoder_service_pb2_grpc import EncoderServiceStub

LIMIT_S: Final = 30.0
# Callers that share one channel, like a client with many threads.
SHARING: Final = 4


@dataclass
class Tally:
    """Outcomes of all callers; failures by description."""

    answered: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Tally") -> None:
        """Count another's in."""
        self.answered += other.answered
        self.refused += other.refused
        self.failed += other.failed


class SteadyCallers:
    """Threads that embed one image with one model in a loop, as a context.

    Args:
        ports: The server's ports by `http` and `grpc`.
        image: Encoded image of type `image/jpeg`.
        model: Name of the model, or None for the default.
        num_each: Callers per protocol.
    """

    def __init__(
        self, ports: dict[str, int], image: bytes, *, model: str | None = None, num_each: int = 8
    ) -> None:
        self.tally = Tally()
        self._ports, self._image, self._model = ports, image, model
        self._is_over = threading.Event()
        self._lock = threading.Lock()
        self._shared = self._channel()
        asks: list[Callable[[], None]] = [self._rest] * num_each + [self._rpc] * num_each
        asks += [self._shared_rpc] * SHARING
        self._threads = [threading.Thread(target=ask, daemon=True) for ask in asks]

    def __enter__(self) -> "SteadyCallers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self.wait()
        self._shared.close()

    def wait(self) -> None:
        """Wait until every caller has ended; each ends when its connection is refused."""
        for thread in self._threads:
            thread.join(LIMIT_S)
        if any(thread.is_alive() for thread in self._threads):
            self._count(self.tally.failed, "hung")

    @property
    def num_answered(self) -> int:
        """Answers so far, over both protocols."""
        return self.tally.answered.total()

    def _count(self, what: Counter[str], name: str) -> None:
        with self._lock:
            what[name] += 1

    def _rest(self) -> None:
        path = "/v1/images:embed?outputs=cls1" + (f"&model={self._model}" if self._model else "")
        connection = http.client.HTTPConnection("127.0.0.1", self._ports["http"], timeout=LIMIT_S)
        while not self._is_over.is_set():
            try:
                connection.connect() if connection.sock is None else None
            except ConnectionRefusedError:
                self._count(self.tally.refused, "REST connection refused")
                return
            try:
                connection.request("POST", path, self._image, {"Content-Type": "image/jpeg"})
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException) as error:
                self._count(self.tally.failed, f"REST {type(error).__name__}")
                connection.close()
                continue
            self._count(self._kind(answer.status, 200, 503), f"REST {answer.status}")
        connection.close()

    def _channel(self) -> Any:
        options = [("grpc.use_local_subchannel_pool", 1)]
        return grpc.insecure_channel(f"127.0.0.1:{self._ports['grpc']}", options=options)

    def _rpc(self) -> None:
        with self._channel() as channel:
            self._ask_rpcs(channel)

    def _shared_rpc(self) -> None:
        self._ask_rpcs(self._shared)

    def _ask_rpcs(self, channel: Any) -> None:
        stub = EncoderServiceStub(channel)
        request = embed_pb2.EmbedImagesRequest(
            images=[image_pb2.Image(encoded=self._image)],
            outputs=[embed_pb2.IMAGE_OUTPUT_CLS1],
            model=self._model or "",
        )
        while not self._is_over.is_set():
            try:
                stub.EmbedImages(request, timeout=LIMIT_S)
            except grpc.RpcError as error:
                details, code = str(error.details()), error.code().name
                if "failed to connect" in details:
                    self._count(self.tally.refused, "gRPC connection refused")
                    return
                # Errors from the server itself carry its own details.
                metadata: Any = error.trailing_metadata() or ()
                keys = [key for key, _ in metadata]
                is_told = "grpc-status-details-bin" in keys
                name = f"gRPC {code}" if is_told else f"gRPC {code}: {details}"
                self._count(self._kind(code if is_told else "", "OK", "UNAVAILABLE"), name)
                continue
            self._count(self.tally.answered, "gRPC OK")

    def _kind(self, status: int | str, good: int | str, refusal: int | str) -> Counter[str]:
        known = {good: self.tally.answered, refusal: self.tally.refused}
        return known.get(status, self.tally.failed)
