"""The interface of an engine, which computes for the commands; its errors; model summaries."""

from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from model.winner_map import Labels
from service.messages import (
    ClassifyImagesRequest,
    EmbedImagesRequest,
    EmbedTextsRequest,
    EstimateMapsRequest,
    FloatArray,
    SegmentImagesRequest,
    VisualizeFeaturesRequest,
)

Embedding = Mapping[str, FloatArray]


class UserError(Exception):
    """A command cannot do what it was asked to do; the message says what to change."""


class EngineError(UserError):
    """The engine cannot compute the request."""


class ImageRefused(Exception):
    """One image is invalid; the others are not affected.

    Attributes:
        code: Short stable name of the cause.
    """

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskInstance:
    """A connected region of one class.

    Attributes:
        label: Of its class, from 1.
        area: Number of pixels.
        box: Left, top, width and height, in pixels.
        score: Mean probability of the class over the pixels.
        counts: Run lengths as compressed by COCO.
    """

    label: int
    area: int
    box: tuple[int, int, int, int]
    score: float
    counts: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mask:
    """Labels [H, W], the names of labels 1, 2, ..., and the instances if requested."""

    labels_HW: Labels
    classes: tuple[str, ...]
    instances: tuple[MaskInstance, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassScore:
    """A class of an image: probability among all classes, and cosine."""

    name: str
    probability: float
    cosine: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSummary:
    """A model that an engine can compute.

    Attributes:
        name: For `--model` of a server.
        variant: Architecture.
        embed_dim: Width of every embedding.
        patch_size: In pixels.
        native_size: Default resolution in pixels.
        outputs: Arrays that can be computed for an image.
        runtime: What computes.
        precision: Number format of the computation.
        device: Where it computes.
        fingerprint: Digest of the model package; equal for equal weights.
    """

    name: str
    variant: str
    embed_dim: int
    patch_size: int
    native_size: int
    outputs: tuple[str, ...]
    runtime: str
    precision: str
    device: str
    fingerprint: str


class Engine(Protocol):
    """A model in this process, or the models of a server. Thread-safe.

    Attributes:
        window: Requests in flight that keep the engine busy.
    """

    window: int

    def embed(self, request: EmbedImagesRequest) -> "Future[Embedding]":
        """Embed the only image of a request.

        The future raises `ImageRefused` or `EngineError`.
        """

    def segment(self, request: SegmentImagesRequest) -> "Future[Mask]":
        """Segment the only image of a request.

        The future raises `ImageRefused` or `EngineError`.
        """

    def embed_texts(self, request: EmbedTextsRequest) -> "Future[FloatArray]":
        """Embed texts: one row for each, [T, D].

        The future raises `EngineError`.
        """

    def classify(self, request: ClassifyImagesRequest) -> "Future[tuple[ClassScore, ...]]":
        """Classify the only image of a request: the best class first.

        The future raises `ImageRefused` or `EngineError`.
        """

    def visualize(self, request: VisualizeFeaturesRequest) -> "Future[NDArray[Any]]":
        """Draw the patch embeddings of the only image of a request, as in its response.

        The future raises `ImageRefused` or `EngineError`.
        """

    def estimate(self, request: EstimateMapsRequest) -> "Future[FloatArray]":
        """Depth or normals of the only image of a request, as in its response.

        The future raises `ImageRefused` or `EngineError`.
        """

    def models(self) -> list[ModelSummary]:
        """List the models, the default one first.

        Raises:
            EngineError: The server does not answer.
        """

    def close(self) -> None:
        """Free the model or close the connections."""


def image_outputs(outputs: Iterable[str]) -> tuple[str, ...]:
    """The outputs of a model for images."""
    return tuple(name for name in outputs if name != "text")


def find_model(engine: Engine, name: str | None) -> ModelSummary:
    """The model with this name, or the default one.

    Raises:
        EngineError: No model has this name.
    """
    summaries = engine.models()
    for summary in summaries:
        if name is None or summary.name == name:
            return summary
    names = ", ".join(summary.name for summary in summaries) or "none"
    raise EngineError(f"No model {name!r} is served. Served models: {names}.")


def request_error(message: str, code: str, param: str | None) -> ImageRefused | EngineError:
    """The engine's error for a request with one image that failed.

    Args:
        message: From the service.
        code: From the service.
        param: The invalid field, if there is one.
    """
    field = (param or "").partition("[")[0]
    is_image = field in {"images", "image"} and code != "empty_list"
    # A body that is too large as a whole names no field: the image makes it so.
    if is_image or (param is None and code == "request_too_large"):
        return ImageRefused(message.removeprefix(f"{param}: ") if param else message, code)
    return EngineError(message)
