"""Shards to caption, a stand-in for Google's batches, and a tiny PaliGemma."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.training.tiny_paligemma import write_paligemma
from training.data.shards.sample import BrokenList, Sample
from training.data.shards.store import index_shards
from training.data.shards.tar_shard import write_shard


def make_samples(start: int, count: int) -> list[Sample]:
    """Samples with an image of one colour and an alt text."""
    samples = []
    for number in range(start, start + count):
        file = BytesIO()
        colour = np.random.default_rng(number).integers(0, 256, 3, np.uint8)
        Image.fromarray(np.tile(colour, (24, 32, 1))).save(file, "PNG")
        key = f"k{number:03d}"
        captions = {"alt": f"alt of {key}"}
        fields = {"url": f"image {number}"}
        samples.append(
            Sample(key=key, image=file.getvalue(), suffix=".png", captions=captions, fields=fields)
        )
    return samples


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards, of five and three samples."""
    write_shard(tmp_path / "in/a.tar", make_samples(0, 5))
    write_shard(tmp_path / "in/b.tar", make_samples(5, 3))
    index_shards(tmp_path / "in", BrokenList())
    return tmp_path / "in"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real PaliGemma of two narrow towers and its processor, with random weights."""
    return write_paligemma(tmp_path_factory.mktemp("paligemma"))


def said(key: str) -> dict[str, Any]:
    """A good answer."""
    content = {"role": "model", "parts": [{"text": f"a long caption of {key}"}]}
    return {"response": {"candidates": [{"content": content, "finishReason": "STOP"}]}}


@dataclass
class Batches:
    """Google's upload, batches and download, as far as captions need them.

    Attributes:
        answer: The answer to the sample of a key.
        polls: Times that a batch is asked for before it is done.
        end: State in which batches end.
        statuses: Statuses of the next answers; 200 after them.
        sent: The requests of each batch.
        url: Of the service.
    """

    answer: Callable[[str], dict[str, Any]] = said
    polls: int = 1
    end: str = "BATCH_STATE_SUCCEEDED"
    statuses: list[int] = field(default_factory=list)
    sent: list[list[dict[str, Any]]] = field(default_factory=list)
    url: str = ""
    uploads: list[bytes] = field(default_factory=list)

    def get(self, path: str) -> dict[str, Any] | bytes:
        number = int(path.partition("?")[0].rpartition("/")[2].removesuffix(":download"))
        if "download" in path:
            lines = [{"key": r["key"], **self.answer(r["key"])} for r in self.sent[number]]
            return "".join(json.dumps(line) + "\n" for line in reversed(lines)).encode()
        self.polls -= 1
        state = "BATCH_STATE_RUNNING" if self.polls >= 0 else self.end
        output = {"responsesFile": f"files/{number}"}
        return {"name": f"batches/{number}", "metadata": {"state": state, "output": output}}

    def post(self, path: str, body: bytes) -> dict[str, Any]:
        if "/upload-to/" in path:
            self.uploads.append(body)
            return {"file": {"name": f"files/{len(self.uploads) - 1}"}}
        if "/upload/" in path:
            return {}
        name = json.loads(body)["batch"]["inputConfig"]["fileName"]
        lines = self.uploads[int(name.removeprefix("files/"))].splitlines()
        self.sent.append([json.loads(line) for line in lines])
        return {
            "name": f"batches/{len(self.sent) - 1}",
            "metadata": {"state": "BATCH_STATE_PENDING"},
        }


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> Iterator[Batches]:
    """The stand-in on a free port, a key, and no pauses."""
    service = Batches()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(lambda: service.get(self.path))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(lambda: service.post(self.path, body))

        def _answer(self, make: Callable[[], dict[str, Any] | bytes]) -> None:
            status = service.statuses.pop(0) if service.statuses else 200
            found = make() if status == 200 else {"error": {"code": status, "message": "no"}}
            content = found if isinstance(found, bytes) else json.dumps(found).encode()
            self.send_response(status)
            self.send_header("X-Goog-Upload-URL", f"{service.url}/upload-to/here")
            self.send_header("X-Goog-Upload-Status", "final")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        service.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setattr("training.captioning.gemini.POLL_S", 0.0)
        monkeypatch.setattr("training.captioning.gemini._try.retry.sleep", lambda _: None)
        monkeypatch.setenv("GEMINI_API_KEY", "a-secret-key")
        yield service
        server.shutdown()
        thread.join(timeout=30)
