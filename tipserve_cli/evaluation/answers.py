"""Answers of an engine to the images and texts of a set, kept on disk.

An answer is stored under a digest of everything that it depends on: the model, the request and the
content of the image. So a stopped evaluation continues, and another task on the same images needs
no model.
"""

import hashlib
import sqlite3
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing, contextmanager
from dataclasses import astuple, dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model.labelled.sets import ImageSource, SetError
from service.messages import (
    EmbedImagesRequest,
    EmbedTextsRequest,
    EstimateMapsRequest,
    FloatArray,
    SegmentImagesRequest,
)
from service.monitoring.metrics import release
from tipserve_cli.engines.engine import Engine, EngineError, ImageRefused, ModelSummary
from tipserve_cli.evaluation.shards import FOLDER, Shard

FILE: Final = "answers.sqlite"
ONLY: Final = Shard(0, 1)
TEXTS_AT_ONCE: Final = 256
ImagesRequest = EmbedImagesRequest | EstimateMapsRequest | SegmentImagesRequest
Request = ImagesRequest | EmbedTextsRequest
Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Answers:
    """An engine whose answers are stored.

    Attributes:
        engine: Computes what is not stored.
        place: URL of the server; empty for a model in this process.
        model: The model that the engine computes.
        stored: Databases; new answers are written to the first.
        advance: Called after each image.
    """

    engine: Engine
    place: str
    model: ModelSummary
    stored: Sequence[sqlite3.Connection]
    advance: Callable[[], None] = lambda: None

    def embed(self, images: Sequence[ImageSource], request: EmbedImagesRequest) -> FloatArray:
        """One output of all images, [B, D].

        Raises:
            SetError: An image is invalid.
            EngineError: The engine fails.
        """
        return np.stack(list(self.each(images, request)))

    def each(
        self, images: Sequence[ImageSource], request: EmbedImagesRequest
    ) -> Iterator[FloatArray]:
        """One output of each image in order.

        Raises:
            SetError: An image is invalid.
            EngineError: The engine fails.
        """
        (output,) = request.outputs

        return self._images(images, self.engine.embed, request, lambda answer: answer[output])

    def segment(
        self, images: Sequence[ImageSource], request: SegmentImagesRequest
    ) -> Iterator[Array]:
        """The labels [H, W] of each image in order.

        Raises:
            SetError: An image is invalid.
            EngineError: The engine fails.
        """
        return self._images(images, self.engine.segment, request, lambda answer: answer.labels_HW)

    def classes_of(self, image: ImageSource, request: SegmentImagesRequest) -> tuple[str, ...]:
        """The classes of labels 1, 2, ... in the masks of a request that does not name them.

        Raises:
            SetError: The image is invalid.
            EngineError: The engine fails.
        """
        # Under a key of its own, because the mask of this image is an answer too.
        key = self._key(request, b"classes")
        found = self._find(key)
        if found is None:
            asked = replace(request, images=(image.read(),))
            try:
                found = np.array(self.engine.segment(asked).result().classes)
            except ImageRefused as error:
                raise SetError(f"{image}: {error} Remove it from the set.") from error
            self._store(key, found)
        return tuple(found.tolist())

    def estimate(
        self, images: Sequence[ImageSource], request: EstimateMapsRequest
    ) -> Iterator[FloatArray]:
        """The depth [H, W] or normals [H, W, 3] of each image in order.

        Raises:
            SetError: An image is invalid.
            EngineError: The engine fails.
        """
        return self._images(images, self.engine.estimate, request, lambda answer: answer)

    def ask(self, images: Sequence[ImageSource], request: ImagesRequest) -> None:
        """Store the answers of images to any request.

        Raises:
            SetError: An image is invalid.
            EngineError: The engine fails.
        """
        if isinstance(request, SegmentImagesRequest):
            found: Iterator[Array] = self.segment(images, request)
        elif isinstance(request, EstimateMapsRequest):
            found = self.estimate(images, request)
        else:
            found = self.each(images, request)
        deque(found, maxlen=0)

    def embed_texts(self, texts: Sequence[str], request: EmbedTextsRequest) -> FloatArray:
        """Embeddings of texts, [T, D].

        Raises:
            EngineError: The engine fails.
        """
        parts = []
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            asked = replace(request, texts=tuple(texts[start : start + TEXTS_AT_ONCE]))
            key = self._key(asked, b"")
            found = self._find(key)
            if found is None:
                found = self.engine.embed_texts(asked).result()
                self._store(key, found)
            parts.append(found)
        return np.concatenate(parts)

    def _images(
        self,
        images: Iterable[ImageSource],
        ask: Callable[[Any], "Future[Any]"],
        request: ImagesRequest,
        array_of: Callable[[Any], Array],
    ) -> Iterator[Array]:
        """Arrays of all images in order; as many requests at a time as keep the engine busy.

        `ask` is a method of the engine; it gets the request with one image.
        """
        in_flight: deque[tuple[ImageSource, str, Array | Future[Any]]] = deque()

        def first() -> Array:
            image, key, answer = in_flight.popleft()
            self.advance()
            if not isinstance(answer, Future):
                return answer
            try:
                array = array_of(answer.result())
            except ImageRefused as error:
                raise SetError(f"{image}: {error} Remove it from the set.") from error
            self._store(key, array)
            return array

        try:
            for image in images:
                if len(in_flight) >= self.engine.window:
                    yield first()
                content = image.read()
                key = self._key(request, content)
                found = self._find(key)
                asked = replace(request, images=(content,))
                in_flight.append((image, key, ask(asked) if found is None else found))
            while in_flight:
                yield first()
        finally:
            for _, _, answer in in_flight:
                if isinstance(answer, Future):
                    answer.cancel()

    def _key(self, request: Request, image: bytes) -> str:
        model = astuple(replace(self.model, name=""))
        options = astuple(replace(request, model=None))
        text = f"{release()} {self.place} {model} {type(request).__name__} {options}"
        return hashlib.sha256(text.encode() + hashlib.sha256(image).digest()).hexdigest()

    def _find(self, key: str) -> Array | None:
        for stored in self.stored:
            row = stored.execute("SELECT array FROM answers WHERE key = ?", (key,)).fetchone()
            if row is not None:
                array: Array = np.load(BytesIO(zlib.decompress(row[0])), allow_pickle=False)
                return array
        return None

    def _store(self, key: str, array: Array) -> None:
        stream = BytesIO()
        np.save(stream, array, allow_pickle=False)
        packed = zlib.compress(stream.getvalue(), level=1)
        first = self.stored[0]
        with first:
            first.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, packed))


@contextmanager
def stored_answers(folder: Path, shard: Shard = ONLY) -> Iterator[list[sqlite3.Connection]]:
    """Open the databases of a folder: the one of this process first.

    Each process writes a database of its own, since several may not share one on a network's file
    system. It reads those of the others only for the report, when they have written theirs.

    Raises:
        EngineError: One cannot be opened.
    """
    parts = folder / FOLDER
    file = folder / FILE if shard == ONLY else parts / f"{shard}.sqlite"
    with ExitStack() as stack:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            stored = [stack.enter_context(closing(_opened(file)))]
            for other in (folder / FILE, *sorted(parts.glob("*.sqlite"))):
                is_in_use = shard != ONLY and other.stem.endswith(f"-of-{shard.count}")
                if other != file and other.is_file() and not is_in_use:
                    stored.append(stack.enter_context(closing(_opened(other))))
        except (OSError, sqlite3.Error) as error:
            raise EngineError(f"{file} cannot be used: {error}.") from error
        yield stored


def _opened(file: Path) -> sqlite3.Connection:
    stored = sqlite3.connect(file)
    stored.execute("PRAGMA journal_mode = WAL")
    stored.execute("PRAGMA synchronous = OFF")  # a lost answer is computed again
    stored.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, array BLOB)")
    return stored
