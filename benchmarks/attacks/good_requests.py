"""A steady trickle of good requests over both protocols, whose answers are known and must stay."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from typing import Any, Final

import grpc
import numpy as np
from numpy.typing import NDArray

from benchmarks.attacks.attack import Broken
from benchmarks.attacks.images import whole
from benchmarks.attacks.raw_rpc import SERVICE
from benchmarks.attacks.rest_client import RestClient
from service.grpc.generated import embed_pb2, image_pb2, segment_pb2

Arrays = Mapping[str, NDArray[Any]]
Ask = Callable[[], Arrays]
NUM_IMAGES: Final = 4
RETRY_S: Final = 0.2
# The last bits depend on what shares a batch. Another image's answer is off by tenths.
MAX_DIFFERENCE: Final = 1e-3
MAX_OTHER_PIXELS: Final = 1e-3


class Refused(Exception):
    """429 or RESOURCE_EXHAUSTED: come back later."""


class Failed(Exception):
    """An error, where there should be an answer."""


@dataclass(slots=True)
class GoodAnswers:
    """What became of the good requests, by protocol; safe from any thread."""

    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    latencies_s: dict[str, list[float]] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)
    largest_difference: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, protocol: str, outcome: str, complaint: str = "") -> None:
        """Count one request."""
        with self._lock:
            self.outcomes.setdefault(protocol, Counter())[outcome] += 1
            if complaint:
                self.complaints.append(f"{protocol}: {complaint}")

    def note_latency(self, protocol: str, seconds: float) -> None:
        """Keep how long an answer took, without the times it was refused."""
        with self._lock:
            self.latencies_s.setdefault(protocol, []).append(seconds)

    def note_difference(self, difference: float) -> None:
        """Keep the largest."""
        with self._lock:
            self.largest_difference = max(self.largest_difference, difference)

    def count(self, outcome: str) -> int:
        """How many there were over all protocols."""
        with self._lock:
            return sum(counts[outcome] for counts in self.outcomes.values())


class Trickle:
    """Good requests over one protocol, one after the other."""

    def __init__(self, protocol: str, asks: Mapping[str, Ask], books: GoodAnswers) -> None:
        self._protocol = protocol
        self._asks = asks
        self._books = books
        self._known: dict[str, Arrays] = {}

    def learn(self) -> None:
        """Ask everything once, in peace; these answers are the ones to keep.

        Raises:
            Failed: There is no answer even then.
        """
        self._known = {name: self._retried(ask) for name, ask in self._asks.items()}

    def ask_until(self, stop: threading.Event, pause_s: float) -> None:
        """Ask on and on, and compare each answer with the one that is known."""
        while not stop.is_set():
            for name in self._asks:
                self._compare_once(name)
                if stop.wait(pause_s):
                    return

    def _compare_once(self, name: str) -> None:
        try:
            answer = self._retried(self._asks[name])
            difference = distance(self._known[name], answer)
        except (Failed, Broken, OSError, grpc.RpcError, ValueError) as error:
            complaint = f"{name}: {type(error).__name__}: {error}"
            self._books.note(self._protocol, "failed", complaint[:300])
            return
        self._books.note_difference(difference)
        is_right = difference <= MAX_DIFFERENCE
        complaint = "" if is_right else f"{name} is off by {difference:.3g}"
        self._books.note(self._protocol, "right" if is_right else "wrong", complaint)

    def _retried(self, ask: Ask) -> Arrays:
        while True:
            begun = time.monotonic()
            try:
                answer = ask()
            except Refused:
                self._books.note(self._protocol, "refused, asked again")
                time.sleep(RETRY_S)
                continue
            self._books.note_latency(self._protocol, time.monotonic() - begun)
            return answer


def distance(known: Arrays, answer: Arrays) -> float:
    """How far an answer is from the known one; infinite where its form is another."""
    if known.keys() != answer.keys():
        return float("inf")
    return max(_distance(known[name], answer[name]) for name in known)


def _distance(known: NDArray[Any], array: NDArray[Any]) -> float:
    if known.shape != array.shape or known.dtype != array.dtype:
        return float("inf")
    if known.dtype.kind in "iu":
        # Labels at the border of two classes may turn with the last bits.
        return float((known != array).mean() / MAX_OTHER_PIXELS * MAX_DIFFERENCE)
    difference = float(np.abs(known - array).max(initial=0.0))
    return difference if np.isfinite(difference) else float("inf")


def over_rest(client: RestClient) -> dict[str, Ask]:
    """Images, texts and masks, as npy."""

    def ask(target: str, body: bytes, media: str) -> Arrays:
        headers = {"Content-Type": media, "Accept": "application/x-npy"}
        answer = client.ask("POST", target, body, headers)
        if answer.status == "429":
            raise Refused
        if answer.status != "200":
            raise Failed(f"{answer.status} {answer.body[:200]!r}")
        return {"array": np.load(BytesIO(answer.body), allow_pickle=False)}

    asks: dict[str, Ask] = {}
    for seed in range(NUM_IMAGES):
        image = whole("JPEG", "RGB", seed)
        for query in ("images:embed?outputs=cls1", "images:segment?classes=dog,grass,sky"):
            asks[f"{query} {seed}"] = partial(ask, f"/v1/{query}", image, "image/jpeg")
        text = json.dumps({"texts": [f"a photo of {seed} dogs", "sky"]}).encode()
        asks[f"texts {seed}"] = partial(ask, "/v1/texts:embed", text, "application/json")
    return asks


def over_grpc(channel: grpc.Channel, limit_s: float) -> dict[str, Ask]:
    """The same as protobuf."""

    def ask(method: str, request: Any, answer_type: Any) -> Arrays:
        stub: Any = channel.unary_unary(SERVICE + method)
        try:
            raw = stub(request.SerializeToString(), timeout=limit_s)
        except grpc.RpcError as error:
            state: Any = error
            if state.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise Refused from None
            raise Failed(f"{state.code().name} {state.details()}"[:300]) from error
        return _arrays(answer_type.FromString(raw))

    asks: dict[str, Ask] = {}
    classes = [segment_pb2.SegmentClass(name=name) for name in ("dog", "grass", "sky")]
    for seed in range(NUM_IMAGES):
        images = [image_pb2.Image(encoded=whole("JPEG", "RGB", seed))]
        texts = [f"a photo of {seed} dogs", "sky"]
        requests: dict[str, tuple[Any, Any]] = {
            "EmbedImages": (
                embed_pb2.EmbedImagesRequest(images=images),
                embed_pb2.EmbedImagesResponse,
            ),
            "SegmentImages": (
                segment_pb2.SegmentImagesRequest(images=images, classes=classes),
                segment_pb2.SegmentImagesResponse,
            ),
            "EmbedTexts": (embed_pb2.EmbedTextsRequest(texts=texts), embed_pb2.EmbedTextsResponse),
        }
        for method, (request, answer) in requests.items():
            asks[f"{method} {seed}"] = partial(ask, method, request, answer)
    return asks


def _arrays(answer: Any) -> Arrays:
    if isinstance(answer, embed_pb2.EmbedTextsResponse):
        return {"texts": np.frombuffer(answer.embeddings.data, "<f4")}
    if isinstance(answer, embed_pb2.EmbedImagesResponse):
        return {"cls1": np.frombuffer(answer.embeddings[0].cls1.data, "<f4")}
    return {"labels": np.frombuffer(answer.segmentations[0].labels.data, "<u2")}
