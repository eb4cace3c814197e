"""One question over REST or gRPC, with one outcome; and callers who ask in a loop."""

import base64
import http.client
import json
import select
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

import grpc
import httpx
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from tests.processes.server import LIMIT_S, Place, Server, photo
from tipserve_client.generated import embed_pb2, image_pb2
from tipserve_client.generated.encoder_service_pb2_grpc import EncoderServiceStub

Protocol = Literal["rest", "grpc"]
PROTOCOLS: tuple[Protocol, ...] = ("rest", "grpc")
OUTCOMES = {
    "200": "served",
    "OK": "served",
    "429": "refused",
    "RESOURCE_EXHAUSTED": "refused",
    "504": "late",
    "DEADLINE_EXCEEDED": "late",
    "401": "denied",
    "UNAUTHENTICATED": "denied",
    "503": "unavailable",
    "UNAVAILABLE": "unavailable",
    "INVALID_ARGUMENT": "invalid",
}
INVALID = {"400", "404", "413", "414", "415", "422", "431"}
CHANNEL = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1))
SMALL = photo(size=(90, 60))


@dataclass(frozen=True, kw_only=True)
class Question:
    """Images or texts to embed; headers and metadata have the same names."""

    images: Sequence[bytes] = (SMALL,)
    texts: Sequence[str] = ()
    resolution: int | None = None
    model: str | None = None
    timeout_ms: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    source: str = "127.0.0.1"  # REST only


@dataclass(frozen=True)
class Outcome:
    """How a question ended: by name, by status, and whether a refusal says when to try again."""

    kind: str
    status: str
    has_retry: bool = False
    text: str = ""


class RestAsked:
    """A question sent over REST, on a connection of its own."""

    def __init__(self, server: Place, question: Question) -> None:
        self._connection = rest_connection(server, question.source)
        self._connection.request(*rest_request(question))

    def outcome(self) -> Outcome:
        """Wait for the answer."""
        outcome = rest_outcome(self._connection)
        self._connection.close()
        return outcome

    def hang_up(self) -> None:
        """Leave without an answer."""
        self._connection.close()


class GrpcAsked:
    """A question sent over gRPC, on a connection of its own."""

    def __init__(self, server: Place, question: Question) -> None:
        self._channel = grpc.insecure_channel(server.grpc, CHANNEL)
        self._future = begin_rpc(EncoderServiceStub(self._channel), question)

    def outcome(self) -> Outcome:
        """Wait for the answer."""
        outcome = grpc_outcome(self._future)
        self._channel.close()
        return outcome

    def hang_up(self) -> None:
        """Leave without an answer."""
        self._future.cancel()
        self._channel.close()


Asked = RestAsked | GrpcAsked


def ask(server: Place, protocol: Protocol, question: Question) -> Asked:
    """Send a question, and do not wait."""
    return RestAsked(server, question) if protocol == "rest" else GrpcAsked(server, question)


def rest_connection(server: Place, source: str = "127.0.0.1") -> http.client.HTTPConnection:
    """A connection, made by the first request."""
    address = urlsplit(server.rest).netloc
    return http.client.HTTPConnection(address, timeout=LIMIT_S, source_address=(source, 0))


def rest_request(question: Question) -> tuple[str, str, bytes, dict[str, str]]:
    """Method, path, body and headers."""
    headers = {"content-type": "application/json", **question.headers}
    if question.timeout_ms is not None:
        headers["x-request-timeout-ms"] = str(question.timeout_ms)
    fields: dict[str, Any] = {"model": question.model, "resolution": question.resolution}
    fields["images"] = [base64.b64encode(image).decode() for image in question.images]
    path = "/v1/images:embed"
    if question.texts:
        path, fields = "/v1/texts:embed", {"texts": question.texts}
    given = {name: value for name, value in fields.items() if value is not None}
    return "POST", path, json.dumps(given).encode(), headers


def rest_outcome(connection: http.client.HTTPConnection) -> Outcome:
    """The answer to the request that a connection has sent."""
    try:
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        return Outcome("failed", repr(error))
    status = str(answer.status)
    kind = OUTCOMES.get(status, "invalid" if status in INVALID else "failed")
    return Outcome(kind, status, answer.getheader("retry-after") is not None, text)


def begin_rpc(stub: Any, question: Question, *, waits: bool = False) -> Any:
    """The future of an RPC; `waits` is whether it waits while its channel has no connection."""
    request: Any = embed_pb2.EmbedTextsRequest(texts=question.texts)
    rpc = stub.EmbedTexts
    if not question.texts:
        images = [image_pb2.Image(encoded=image) for image in question.images]
        request = embed_pb2.EmbedImagesRequest(
            images=images, resolution=question.resolution, model=question.model
        )
        rpc = stub.EmbedImages
    timeout_s = LIMIT_S if question.timeout_ms is None else question.timeout_ms / 1000
    metadata = tuple(question.headers.items())
    return rpc.future(request, timeout=timeout_s, metadata=metadata, wait_for_ready=waits)


def grpc_outcome(future: Any) -> Outcome:
    """The answer to an RPC."""
    try:
        future.result()
    except grpc.RpcError as error:
        status: Any = error
        code = status.code().name
        details = dict(status.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
        found = status_pb2.Status.FromString(details).details
        has_retry = any(detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in found)
        return Outcome(OUTCOMES.get(code, "failed"), code, has_retry, status.details() or "")
    return Outcome("served", "OK")


def until(condition: Callable[[], bool], what: str) -> None:
    """Poll; fails the test if it takes too long."""
    limit = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < limit, what
        time.sleep(0.01)


def in_order(asked: Sequence[tuple[str, Asked]]) -> list[str]:
    """The names of questions in the order in which they are answered; all must be served."""
    names: list[str] = []

    def wait(name: str, one: Asked) -> Outcome:
        outcome = one.outcome()
        names.append(name)
        return outcome

    with ThreadPoolExecutor(len(asked)) as pool:
        outcomes = list(pool.map(lambda pair: wait(*pair), asked))
    assert {outcome.kind for outcome in outcomes} == {"served"}, outcomes
    return names


@contextmanager
def busy_lanes(server: Server, num_images: int = 10) -> Iterator[None]:
    """While the block runs, the lanes have work that goes before all other: `num_images`."""
    first = {"x-request-priority": "1", "x-forwarded-for": "198.51.100.1"}
    question = Question(images=[SMALL] * num_images, resolution=448, headers=first)
    asked = ask(server, "rest", question)
    until(lambda: server.metric("tipserve_model_queue_depth") > 1, "the lanes become busy")
    yield
    outcome = asked.outcome()
    assert outcome.kind == "served", outcome


class SteadyCallers:
    """Threads that embed one image in a loop over both protocols, as a context.

    Each keeps its connection. A caller heeds readiness: it asks nothing more once the server says
    that it is not ready; a proxy (`heeds=False`) does so for its callers.
    """

    def __init__(
        self,
        server: Place,
        *,
        num_each: int = 4,
        question: Question | None = None,
        heeds: bool = True,
    ) -> None:
        self.outcomes: Counter[tuple[Protocol, str]] = Counter()
        self.others: list[Outcome] = []
        self._server, self._question = server, question or Question()
        self._is_over, self._lock = threading.Event(), threading.Lock()
        asks = [self._rest] * num_each + [self._grpc] * num_each
        asks += [self._watch] * heeds
        self._threads = [threading.Thread(target=one) for one in asks]

    def __enter__(self) -> "SteadyCallers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, num_more: int) -> None:
        """Wait until so many more questions have been answered over each protocol."""
        wanted = {protocol: self.num_served(protocol) + num_more for protocol in PROTOCOLS}
        until(
            lambda: all(self.num_served(protocol) >= wanted[protocol] for protocol in PROTOCOLS),
            f"{num_more} more answers: {self.outcomes}, {self.others[:3]}",
        )

    def wait_until_heeded(self) -> None:
        """Wait until the server has said that it is not ready, and every caller has ended."""
        for thread in self._threads:
            thread.join(LIMIT_S)
            assert not thread.is_alive()

    def num_served(self, protocol: Protocol) -> int:
        """Answers so far."""
        return self.outcomes[protocol, "served"]

    def _watch(self) -> None:
        with httpx.Client(timeout=LIMIT_S) as client:
            while not self._is_over.wait(0.05):
                if client.get(self._server.ready).status_code != 200:
                    self._is_over.set()

    def _count(self, protocol: Protocol, outcome: Outcome) -> None:
        with self._lock:
            self.outcomes[protocol, outcome.kind] += 1
            if outcome.kind != "served":
                self.others.append(outcome)

    def _rest(self) -> None:
        connection = rest_connection(self._server)
        while not self._is_over.is_set():
            # As clients do before they use a connection again: it may be closed.
            if connection.sock is not None and select.select([connection.sock], [], [], 0)[0]:
                connection.close()
            try:
                connection.request(*rest_request(self._question))
            except OSError as error:
                self._count("rest", Outcome("failed", repr(error)))
                connection.close()
                continue
            self._count("rest", rest_outcome(connection))
        connection.close()

    def _grpc(self) -> None:
        with grpc.insecure_channel(self._server.grpc, CHANNEL) as channel:
            stub = EncoderServiceStub(channel)
            while not self._is_over.is_set():
                self._count("grpc", grpc_outcome(begin_rpc(stub, self._question, waits=True)))
