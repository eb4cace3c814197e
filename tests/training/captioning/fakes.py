"""A captioner that can be killed, a clock that only sleeping moves, a stand-in for the service."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.captioning.gemini import Clock
from training.captioning.journal import Failure, Outcome, Usage
from training.data.shards.sample import Sample


class FakeClock(Clock):
    """Time passes only by sleeping; several threads may use it."""

    def __init__(self) -> None:
        super().__init__()
        self.slept_s: list[float] = []
        self._now_s = 1000.0
        self._lock = threading.Lock()

    def now(self) -> float:
        with self._lock:
            return self._now_s

    def sleep(self, seconds: float) -> None:
        with self._lock:
            super().sleep(0)
            self.slept_s.append(seconds)
            self._now_s += seconds


class Killed(BaseException):
    """Ends a job in the middle, as a signal would."""


@dataclass
class FakeCaptioner:
    """Captions by the image's bytes, in batches; raises `Killed` after `dies_after` samples."""

    batch_size: int = 2
    dies_after: int | None = None
    failures: Mapping[str, Failure] = field(default_factory=dict)
    usage: Usage = field(default_factory=lambda: Usage(input_tokens=10, output_tokens=3))
    answer: str = "  {key} in\n{digest} "
    forgets: bool = False
    source: str = "paligemma"
    seen: list[str] = field(default_factory=list)

    def settings(self) -> Mapping[str, Any]:
        return {"kind": "fake", "batch_size": self.batch_size}

    def caption(self, samples: Iterable[Sample]) -> Iterator[list[Outcome]]:
        remaining = iter(samples)
        while batch := list(islice(remaining, self.batch_size)):
            if self.dies_after is not None and len(self.seen) >= self.dies_after:
                raise Killed
            self.seen += [sample.key for sample in batch]
            outcomes = [self._one(sample, batch) for sample in batch]
            yield outcomes[: 1 if self.forgets else None]

    def _one(self, sample: Sample, batch: Iterable[Sample]) -> Outcome:
        failure = self.failures.get(sample.key)
        if failure is not None:
            return Outcome(key=sample.key, failure=failure, usage=self.usage)
        # The neighbours are in it, so that a batch cut otherwise gives other captions.
        digest = hashlib.sha256(b"".join(s.image for s in batch)).hexdigest()[:6]
        caption = self.answer.format(key=sample.key, digest=digest)
        return Outcome(key=sample.key, caption=caption, usage=self.usage)


def png(colour: NDArray[np.int64]) -> bytes:
    file = BytesIO()
    Image.fromarray(np.tile(colour.astype(np.uint8), (24, 32, 1))).save(file, "PNG")
    return file.getvalue()


def make_samples(start: int, count: int) -> list[Sample]:
    rng = np.random.default_rng(start)
    return [
        Sample(
            key=f"k{number:03d}",
            image=png(rng.integers(0, 256, 3)),
            suffix=".png",
            captions={"alt": f"alt of k{number:03d}"},
            fields={"url": f"image {number}"},
        )
        for number in range(start, start + count)
    ]


@dataclass(frozen=True)
class Reply:
    """One answer of the stand-in."""

    status: int = 200
    body: Mapping[str, Any] | bytes = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    waits_for: threading.Event | None = None


def said(text: str, *, finish: str = "STOP", tokens: tuple[int, int] = (600, 20)) -> Reply:
    """A good answer."""
    return Reply(
        body={
            "candidates": [
                {"content": {"role": "model", "parts": [{"text": text}]}, "finishReason": finish}
            ],
            "usageMetadata": {"promptTokenCount": tokens[0], "candidatesTokenCount": tokens[1]},
        }
    )


def refused(
    status: int, name: str, *, details: Iterable[Mapping[str, Any]] = (), **headers: str
) -> Reply:
    """An error in the form of Google's services."""
    error = {"code": status, "message": f"{name} it is", "status": name, "details": list(details)}
    return Reply(status=status, body={"error": error}, headers=headers)


class StandIn:
    """Speaks the service's `generateContent` over HTTP; tests set its answers by sample.

    A sample is known by its alt text, "alt of KEY". Its planned replies go out one by one, then
    `default(key)` does.
    """

    def __init__(self) -> None:
        self.plan: dict[str, list[Reply]] = {}
        self.default: Callable[[str], Reply] = lambda key: said(f"a long caption of {key}")
        self.requests: list[dict[str, Any]] = []
        self.headers: list[Mapping[str, str]] = []
        self.paths: list[str] = []
        self.most_at_once = 0
        self.on_request: Callable[[int], None] = lambda count: None
        self._at_once = 0
        self._lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def keys(self) -> list[str]:
        """The samples of the requests so far."""
        return [key_of(request) for request in self.requests]

    def _reply(self, request: dict[str, Any], headers: Mapping[str, str], path: str) -> Reply:
        with self._lock:
            self.requests.append(request)
            self.headers.append(headers)
            self.paths.append(path)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            count, key = len(self.requests), key_of(request)
            planned = self.plan.get(key, [])
            reply = planned.pop(0) if planned else self.default(key)
        self.on_request(count)
        if reply.waits_for is not None:
            reply.waits_for.wait(timeout=30)
        with self._lock:
            self._at_once -= 1
        return reply

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        answer = self._reply

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                reply = answer(request, dict(self.headers), self.path)
                body = (
                    reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
                )
                with suppress(ConnectionError):  # the client may have given up
                    self.send_response(reply.status)
                    for name, value in reply.headers.items():
                        self.send_header(name.replace("_", "-"), value)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        return Handler


def key_of(request: Mapping[str, Any]) -> str:
    text = str(request["contents"][0]["parts"][1]["text"])
    return text.partition("Alt text: alt of ")[2].partition("\n")[0]
