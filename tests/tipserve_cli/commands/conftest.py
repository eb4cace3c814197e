"""A fake engine for the commands, and an image."""

import importlib
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.messages import (
    ClassifyImagesRequest,
    EmbedImagesRequest,
    EmbedTextsRequest,
    EstimateMapsRequest,
    FloatArray,
    SegmentImagesRequest,
    VisualizeFeaturesRequest,
)
from service.models.heads import leaves_names_to_head
from tipserve_cli.engines.engine import (
    ClassScore,
    Embedding,
    EngineError,
    ImageRefused,
    Mask,
    MaskInstance,
    ModelSummary,
)

RUNS = "Z12V1000nU2"  # rows 2 and 3 of columns 1 to 3
WIDTH = 4


@pytest.fixture
def image(tmp_path: Path) -> Path:
    file = tmp_path / "image.png"
    half = np.zeros((40, 60, 3), np.uint8)
    half[:, 30:] = (250, 40, 30)
    Image.fromarray(half).save(file)
    return file


def done(value: Any) -> "Future[Any]":
    future: Future[Any] = Future()
    if isinstance(value, Exception):
        future.set_exception(value)
    else:
        future.set_result(value)
    return future


def unit(index: int) -> FloatArray:
    row: FloatArray = np.eye(WIDTH, dtype=np.float32)[index % WIDTH]
    return row


class FakeEngine:
    """Finds the first class everywhere, and refuses an image that is not a PNG file.

    The embedding of the k-th text is the k-th unit vector; those of images are the first one.

    Attributes:
        num_images: Images that were asked for.
        most_images: The engine fails at a further image.
        requests: All requests.
        head: The classes that every head has.
        outputs: Of the model.
    """

    window = 2

    def __init__(self) -> None:
        self.num_images = 0
        self.most_images = 1000
        self.requests: list[Any] = []
        self.head: tuple[str, ...] = ("a cat", "a dog")
        self.outputs: tuple[str, ...] = ("values",)

    def _answer(self, request: Any, value: Any) -> "Future[Any]":
        if self.num_images == self.most_images:
            raise EngineError("the server has gone")
        self.num_images += 1
        self.requests.append(request)
        (image,) = request.images
        if image.startswith(b"\x89PNG"):
            return done(value)
        return done(ImageRefused("the image cannot be decoded", "invalid_image"))

    def segment(self, request: SegmentImagesRequest) -> "Future[Mask]":
        instance = MaskInstance(label=1, area=6, box=(1, 2, 3, 2), score=0.75, counts=RUNS)
        found = (instance,) * request.include_instances
        names = tuple(one.name for one in request.classes)
        if leaves_names_to_head(request):
            names = self.head
        mask = Mask(labels_HW=np.ones((40, 60), np.uint8), classes=names, instances=found)
        return self._answer(request, mask)

    def classify(self, request: ClassifyImagesRequest) -> "Future[tuple[ClassScore, ...]]":
        names = [one.name for one in reversed(request.classes)][: request.top_k]
        scores = tuple(
            ClassScore(name=name, probability=share, cosine=share / 2)
            for name, share in zip(names, (0.75, 0.25, 0.0), strict=False)
        )
        return self._answer(request, scores)

    def embed(self, request: EmbedImagesRequest) -> "Future[Embedding]":
        arrays = {name: unit(0) for name in request.outputs}
        for name in {"patches", "values"} & set(request.outputs):
            arrays[name] = np.ones((2, 3, WIDTH), np.float32)
        return self._answer(request, arrays)

    def visualize(self, request: VisualizeFeaturesRequest) -> "Future[Any]":
        shape = (40, 60, 3) if request.kind == "colors" else (40, 60)
        kind = np.uint16 if request.kind == "groups" else np.float32
        return self._answer(request, np.ones(shape, kind))

    def estimate(self, request: EstimateMapsRequest) -> "Future[FloatArray]":
        depth_HW = np.ones((40, 60), np.float32)
        is_depth = request.task == "depth"
        return self._answer(request, depth_HW if is_depth else depth_HW[..., None] * (0, 0, 1))

    def embed_texts(self, request: EmbedTextsRequest) -> "Future[FloatArray]":
        self.requests.append(request)
        return done(np.stack([unit(index) for index in range(len(request.texts))]))

    def models(self) -> list[ModelSummary]:
        names = dict.fromkeys(("variant", "runtime", "precision", "device", "fingerprint"), "x")
        sizes = {"embed_dim": WIDTH, "patch_size": 1, "native_size": 1}
        return [ModelSummary(name="fake", outputs=self.outputs, **names, **sizes)]  # type: ignore[arg-type]

    def close(self) -> None:
        """Nothing to free."""


@pytest.fixture
def fake_engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    engine = FakeEngine()
    for command in ("classify", "evaluate", "features", "search", "segment", "texts"):
        # A test that imports the commands again leaves the other modules as attributes.
        module = importlib.import_module(f"tipserve_cli.commands.{command}")
        monkeypatch.setattr(module, "opened_engine", lambda model: nullcontext(engine))
    return engine
