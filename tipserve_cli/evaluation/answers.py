"""Answers of a model to the images and texts of a set, kept on disk.

An answer is stored under a digest of everything that it depends on: the model, the question and the
content of the image. So a stopped evaluation continues, and another task on the same images needs
no model.
"""

import hashlib
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass, replace
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from model.labelled.sets import ImageSource, SetError
from tipserve_cli.engine import Engine, UserError, reason_of, refuses_image
from tipserve_client import Client, ModelInfo, TipserveError
from tipserve_client.results import FloatArray

FILE: Final = "answers.sqlite"
TEXTS_AT_ONCE: Final = 256
Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a model is asked about each image.

    Attributes:
        about: One embedding, the mask, the mask with its cosines [2, H, W], the names of the mask's
            classes, or a map.
        options: Of the client's method.
        classes: Of the mask.
    """

    about: Literal["embedding", "mask", "scored mask", "classes", "depth", "normals"]
    options: Mapping[str, Any]
    classes: tuple[str, ...] = ()

    def ask(self, client: Client, image: bytes, model: str | None) -> Array:
        """The answer for an image."""
        asked: dict[str, Any] = {**self.options, "model": model}
        found: Any
        if self.about == "embedding":
            (found,) = client.embed_images(image, **asked)
            return np.asarray(getattr(found, asked["outputs"]))
        if self.about in {"depth", "normals"}:
            (found,) = (client.depth if self.about == "depth" else client.normals)(image, **asked)
            return np.asarray(found)
        is_scored = self.about == "scored mask"
        (found,) = client.segment(image, self.classes, include_scores=is_scored, **asked)
        if is_scored:
            return np.stack([found.labels, found.scores]).astype(np.float16)
        if self.about == "mask":
            return np.asarray(found.labels)
        return np.array([one.name for one in found.classes])


@dataclass(frozen=True, slots=True)
class Answers:
    """An engine whose answers are stored.

    Attributes:
        engine: Computes what is not stored.
        model: The model that the engine computes.
        served_name: Of the model, for requests; None is the only one.
        stored: The database.
        advance: Called after each image.
    """

    engine: Engine
    model: ModelInfo
    served_name: str | None
    stored: sqlite3.Connection
    advance: Callable[[], None] = lambda: None

    def each(self, images: Sequence[ImageSource], question: Question) -> Iterator[Array]:
        """The answer for each image in order."""
        for (array,) in self.each_of(images, [[question]] * len(images)):
            yield array

    def each_of(
        self, images: Sequence[ImageSource], questions: Sequence[Sequence[Question]]
    ) -> Iterator[list[Array]]:
        """For each image in order the answers to its own questions."""
        Known = list[tuple[Question, str, Array | None]]

        def items() -> Iterator[tuple[ImageSource, bytes, Known]]:
            for image, asked in zip(images, questions, strict=True):
                content = image.read()
                keys = [self._key(question, content) for question in asked]
                yield image, content, list(zip(asked, keys, map(self._find, keys), strict=True))

        def ask(item: tuple[ImageSource, bytes, Known]) -> list[Array]:
            image, content, known = item
            try:
                return [
                    question.ask(self.engine.client, content, self.served_name)
                    if array is None
                    else array
                    for question, _, array in known
                ]
            except TipserveError as error:
                if not refuses_image(error):
                    raise
                reason = reason_of(error)
                raise SetError(f"{image}: {reason} Remove it from the set.") from error

        with closing(self.engine.in_order(ask, items())) as answered:
            for (_, _, known), future in answered:
                arrays = future.result()
                for (_, key, before), array in zip(known, arrays, strict=True):
                    if before is None:
                        self._store(key, array)
                self.advance()
                yield arrays

    def embed(self, images: Sequence[ImageSource], question: Question) -> FloatArray:
        """One embedding of all images, [B, D]."""
        return np.stack(list(self.each(images, question)))

    def classes_of(self, image: ImageSource, question: Question) -> tuple[str, ...]:
        """The classes of labels 1, 2, ... in the masks of a question that does not name them."""
        silent = replace(self, advance=lambda: None)
        (names,) = silent.each([image], replace(question, about="classes"))
        return tuple(names.tolist())

    def embed_texts(self, texts: Sequence[str], templates: Any) -> FloatArray:
        """Embeddings of texts, [T, D]."""
        asked: dict[str, Any] = {"templates": templates, "model": self.served_name}
        parts = []
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            some = texts[start : start + TEXTS_AT_ONCE]
            key = self._key((templates, *some), b"")
            found = self._find(key)
            if found is None:
                found = self.engine.client.embed_texts(some, **asked)
                self._store(key, found)
            parts.append(found)
        return np.concatenate(parts)

    def _key(self, question: Question | tuple[Any, ...], image: bytes) -> str:
        model = astuple(replace(self.model, name="", limits={}))
        text = f"{version('tipserve')} {self.engine.url} {model} {question}"
        return hashlib.sha256(text.encode() + hashlib.sha256(image).digest()).hexdigest()

    def _find(self, key: str) -> Array | None:
        found = self.stored.execute("SELECT array FROM answers WHERE key = ?", (key,))
        for (packed,) in found:
            array: Array = np.load(BytesIO(zlib.decompress(packed)), allow_pickle=False)
            return array
        return None

    def _store(self, key: str, array: Array) -> None:
        stream = BytesIO()
        np.save(stream, array, allow_pickle=False)
        packed = zlib.compress(stream.getvalue(), level=1)
        with self.stored:
            self.stored.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, packed))


@contextmanager
def stored_answers(folder: Path) -> Iterator[sqlite3.Connection]:
    """Open the database of a folder."""
    file = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stored = sqlite3.connect(file)
        stored.execute("PRAGMA journal_mode = WAL")
        stored.execute("PRAGMA synchronous = OFF")  # a lost answer is computed again
        stored.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, array BLOB)")
    except (OSError, sqlite3.Error) as error:
        raise UserError(f"{file} cannot be used: {error}.") from error
    with closing(stored):
        yield stored
