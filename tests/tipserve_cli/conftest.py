"""Stand-ins for what answers a client, by which commands run without a model; an image."""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image

from tests.service.conftest import (  # noqa: F401 - fixtures
    clock,
    encode_image,
    load_fake,
    make_settings,
    manifest,
    metrics,
    runtime,
    serve_fake,
    serving,
)
from tipserve_cli import model_options
from tipserve_cli.engine import Engine
from tipserve_cli.evaluation.answers import Answers, stored_answers
from tipserve_client import Client, ModelInfo
from tipserve_client.errors import InternalError, InvalidRequest
from tipserve_client.requests import Request
from tipserve_client.results import ClassArea, ClassScore, ImageEmbedding, Instance, Segmentation

RUNS = "Z12V1000nU2"  # rows 2 and 3 of columns 1 to 3
WIDTH = 4
REFUSED = InvalidRequest(
    "images[0]: the image cannot be decoded", code="invalid_image", param="images[0]"
)


def segmentation(
    labels: Any, names: list[str], *, has_instance: bool = False, scores: Any = None
) -> Segmentation:
    areas = [
        ClassArea(label=label, name=name, color="#6600ff", area_share=0.0, score=0.0)
        for label, name in enumerate(names, start=1)
    ]
    size = np.shape(labels)
    one = Instance(
        label=1, name=names[0], area=6, box=(1, 2, 3, 2), score=0.75, size=size, counts=RUNS
    )  # fmt: skip
    return Segmentation(
        labels=np.array(labels, np.uint16),
        scores=np.zeros(size, np.float32) if scores is None else np.array(scores, np.float32),
        classes=tuple(areas),
        background_share=0.0,
        instances=(one,) * has_instance,
    )


class Fake:
    """Finds the first class everywhere, and refuses an image that is not a PNG or JPEG file.

    The embedding of the k-th text is the k-th unit vector; those of images are the first one.

    Attributes:
        requests: All requests.
        most_images: A further image is an error of the server.
        head: The classes that every head has.
        outputs: Of the model.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.num_images = 0
        self.most_images = 1000
        self.head = ["a cat", "a dog"]
        self.outputs: tuple[str, ...] = ("patches", "values", "cls1", "cls2")
        self._lock = threading.Lock()

    def send(self, request: Request, timeout_s: float) -> Any:
        with self._lock:
            if request.method != "list_models":
                self.requests.append(request)
            if request.images and self.num_images == self.most_images:
                raise InternalError("the server has gone")
            self.num_images += len(request.images)
        if request.images and not request.images[0].startswith((b"\x89PNG", b"\xff\xd8")):
            raise REFUSED
        answer = getattr(self, request.method)(request)
        return answer if request.method in {"embed_texts", "list_models"} else [answer]

    def segment_images(self, request: Request) -> Segmentation:
        names = [one["name"] for one in request.fields["classes"]]
        names = self.head if names == ["model"] or names[0].startswith("head:") else names
        has_instance = bool(request.fields.get("include_instances"))
        return segmentation(np.ones((40, 60)), names, has_instance=has_instance)

    def classify_images(self, request: Request) -> list[ClassScore]:
        names = [one["name"] for one in request.fields["classes"]][::-1]
        shares = (0.75, 0.25, 0.0)
        return [
            ClassScore(label=1, name=name, probability=share, cosine=share / 2)
            for name, share in zip(names[: request.fields["top_k"]], shares, strict=False)
        ]

    def embed_images(self, request: Request) -> ImageEmbedding:
        known = {"cls1": np.eye(WIDTH)[0], "cls2": np.eye(WIDTH)[1]}
        known |= dict.fromkeys(("patches", "values"), np.ones((2, 3, WIDTH)))
        wanted = request.fields.get("outputs", ["cls1"])
        found: dict[str, Any] = {name: known[name].astype(np.float32) for name in wanted}
        return ImageEmbedding(**found)

    def visualize_features(self, request: Request) -> Any:
        is_coloured = request.fields["kind"] == "colors"
        kind = np.uint16 if request.fields["kind"] == "groups" else np.float32
        return np.ones((40, 60, 3) if is_coloured else (40, 60), kind)

    def estimate_depth(self, _: Request) -> Any:
        return np.ones((40, 60), np.float32)

    def estimate_normals(self, _: Request) -> Any:
        return np.ones((40, 60, 1), np.float32) * np.array((0, 0, 1), np.float32)

    def embed_texts(self, request: Request) -> Any:
        return np.eye(WIDTH, dtype=np.float32)[np.arange(len(request.texts)) % WIDTH]

    def list_models(self, _: Request) -> list[ModelInfo]:
        return [MODEL(outputs=self.outputs)]

    def close(self) -> None:
        """Nothing to free."""


def MODEL(**fields: Any) -> ModelInfo:  # noqa: N802 - a model with defaults
    names = dict.fromkeys(("variant", "runtime", "precision", "device", "package_digest"), "x")
    sizes = dict.fromkeys(("patch_size", "native_size", "min_size", "max_size", "size_multiple"), 1)
    given: dict[str, Any] = {"name": "fake", "embed_dim": WIDTH, "outputs": (), "limits": {}}
    return ModelInfo(**{**names, **sizes, **given, **fields})


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """What answers the commands of the test, which believe in a server."""
    found = Fake()
    monkeypatch.setenv("TIPSERVE_URL", "http://fake")
    monkeypatch.setattr(model_options, "connect", lambda *_: Engine(Client(found), 2))
    return found


@pytest.fixture
def image(tmp_path: Path) -> Path:
    file = tmp_path / "image.png"
    half = np.zeros((40, 60, 3), np.uint8)
    half[:, 30:] = (250, 40, 30)
    Image.fromarray(half).save(file)
    return file


class Scripted(Fake):
    """Answers from tables: masks, maps and vectors by the image's first byte, vectors by text.

    Attributes:
        masks: Labels of the classes of any request.
        named_masks: Instead, pixels by the name of their class; a name that is not asked for is 0.
        cosines: Of the pixels of a mask.
    """

    def __init__(self) -> None:
        super().__init__()
        self.own_classes: list[str] = []
        self.masks: dict[int, Any] = {}
        self.named_masks: dict[int, dict[str, Any]] = {}
        self.cosines: dict[int, Any] = {}
        self.maps: dict[int, Any] = {}
        self.images: dict[int, Any] = {}
        self.texts: dict[str, Any] = {}

    def send(self, request: Request, timeout_s: float) -> Any:
        self.requests.append(request)
        try:
            return self._answer(request)
        except KeyError:
            raise REFUSED from None

    def _answer(self, request: Request) -> Any:
        if request.method == "embed_texts":
            return np.array([self.texts[text] for text in request.texts], np.float32)
        first = request.images[0][0]
        if request.method == "embed_images":
            (name,) = request.fields["outputs"]
            vectors: dict[str, Any] = {name: np.array(self.images[first], np.float32)}
            return [ImageEmbedding(**vectors)]
        if request.method != "segment_images":
            return [np.array(self.maps[first], np.float32)]
        names = [one["name"] for one in request.fields["classes"]]
        names = self.own_classes if names == ["model"] else names
        labels = self.masks.get(first)
        if labels is None:
            labels = np.zeros(np.shape(next(iter(self.named_masks[first].values()))), int)
            for name, pixels in self.named_masks[first].items():
                if name in names:
                    labels[np.array(pixels, bool)] = names.index(name) + 1
        # A mask of another request may have labels that this one does not have.
        labels = np.where(np.array(labels) > len(names), 0, labels)
        return [segmentation(labels, names, scores=self.cosines.get(first))]


@pytest.fixture
def scripted() -> Scripted:
    return Scripted()


@pytest.fixture
def answers(scripted: Scripted, tmp_path: Path) -> Iterator[Answers]:
    engine = Engine(Client(scripted), 2)
    with stored_answers(tmp_path / "answers") as stored:
        yield Answers(engine, MODEL(), None, stored)
    engine.close()


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


@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of an empty folder in an object store."""
    url = "memory://bucket/job" if request.param == "memory" else (tmp_path / "job").as_uri()
    yield url
    with suppress(FileNotFoundError):
        fsspec.filesystem("memory").rm("/bucket", recursive=True)
