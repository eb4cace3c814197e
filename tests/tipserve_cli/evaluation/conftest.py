"""An engine with an answer for each image and text, and sets on disk."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.messages import (
    EmbedImagesRequest,
    EmbedTextsRequest,
    EstimateMapsRequest,
    SegmentImagesRequest,
)
from tipserve_cli.engines.engine import Embedding, ImageRefused, Mask, ModelSummary
from tipserve_cli.evaluation.answers import Answers, stored_answers

NAMES = dict.fromkeys(("name", "variant", "runtime", "precision", "device", "fingerprint"), "x")
SUMMARY = ModelSummary(outputs=(), embed_dim=2, patch_size=1, native_size=1, **NAMES)


def first_byte(request: Any) -> int:
    return int(request.images[0][0])


class Scripted:
    """Answers from tables: masks, maps and vectors by the image's first byte, vectors by text."""

    window = 2

    def __init__(self) -> None:
        self.own_classes: tuple[str, ...] = ()
        self.masks: dict[int, Any] = {}
        self.maps: dict[int, Any] = {}
        self.images: dict[int, Any] = {}
        self.texts: dict[str, Any] = {}
        self.requests: list[Any] = []

    def _answer(self, request: Any, find: Callable[[], Any]) -> "Future[Any]":
        self.requests.append(request)
        future: Future[Any] = Future()
        try:
            future.set_result(find())
        except KeyError:
            future.set_exception(ImageRefused("The image cannot be decoded.", "invalid_image"))
        return future

    def segment(self, request: SegmentImagesRequest) -> "Future[Mask]":
        names, first = tuple(one.name for one in request.classes), first_byte(request)
        names = self.own_classes if names == ("model",) else names
        return self._answer(
            request,
            lambda: Mask(labels_HW=np.array(self.masks[first], np.uint8), classes=names),
        )

    def embed(self, request: EmbedImagesRequest) -> "Future[Embedding]":
        (name,), first = request.outputs, first_byte(request)
        return self._answer(request, lambda: {name: np.array(self.images[first], np.float32)})

    def estimate(self, request: EstimateMapsRequest) -> "Future[Any]":
        first = first_byte(request)
        return self._answer(request, lambda: np.array(self.maps[first], np.float32))

    def embed_texts(self, request: EmbedTextsRequest) -> "Future[Any]":
        rows = [self.texts[text] for text in request.texts]
        return self._answer(request, lambda: np.array(rows, np.float32))


@pytest.fixture
def engine() -> Scripted:
    return Scripted()


@pytest.fixture
def answers(engine: Scripted, tmp_path: Path) -> Iterator[Answers]:
    with stored_answers(tmp_path / "answers") as stored:
        yield Answers(engine, "", SUMMARY, stored)  # type: ignore[arg-type]


@pytest.fixture
def write() -> Callable[..., Path]:
    """Write a file, whose content is its first byte, or a mask."""

    def put(path: Path, content: Any) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, int):
            path.write_bytes(bytes([content]))
        elif isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        else:
            Image.fromarray(np.array(content, np.uint8)).save(path)
        return path

    return put
