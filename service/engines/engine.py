"""What computes for the command line, and how it is chosen."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from model.winner_map import Labels
from service.messages import EmbedImagesRequest, FloatArray, SegmentImagesRequest

Embedding = Mapping[str, FloatArray]


class UserError(Exception):
    """A command cannot do what it was asked for; the sentence says what to change."""


class EngineError(UserError):
    """Nothing can be computed as it was asked for."""


class ImageRefused(Exception):
    """One image cannot be used; the others can.

    Attributes:
        code: Short stable name of the cause.
    """

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSummary:
    """What a user is told about a model that can be asked.

    Attributes:
        name: To be used as `--model` of a server.
        variant: Architecture.
        embed_dim: Width of every embedding.
        patch_size: In pixels.
        native_size: Resolution where none is named, in pixels.
        outputs: What can be asked for of images.
        runtime: What computes.
        precision: Of the arithmetic.
        device: Where it computes.
        fingerprint: Equal for equal weights, as far as it can be known.
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
    """One model, or a server of several. Thread-safe.

    Attributes:
        window: Requests that should be under way at once to keep it busy.
    """

    window: int

    def embed(self, request: EmbedImagesRequest) -> "Future[Embedding]":
        """Embed the one image of a request.

        The future raises `ImageRefused` or `EngineError`.
        """

    def segment(self, request: SegmentImagesRequest) -> Labels:
        """The mask [H, W] of the one image of a request.

        Raises:
            ImageRefused: The image cannot be used.
            EngineError: Anything else.
        """

    def models(self) -> list[ModelSummary]:
        """What can be asked, the default first.

        Raises:
            EngineError: There is no answer.
        """

    def close(self) -> None:
        """End what was started."""


def of_images(outputs: Iterable[str]) -> tuple[str, ...]:
    """Those outputs of a model that are of images."""
    return tuple(name for name in outputs if name != "text")


def find_model(engine: Engine, name: str | None) -> ModelSummary:
    """The model of that name, or the default one.

    Raises:
        EngineError: There is none.
    """
    known = engine.models()
    for summary in known:
        if name is None or summary.name == name:
            return summary
    names = ", ".join(summary.name for summary in known) or "none"
    raise EngineError(f"No model {name!r} is served; there is: {names}.")


def refusal(message: str, code: str, param: str | None) -> Exception:
    """The error of a request with one image: the image's own, or everybody's."""
    if (param or "").partition("[")[0] in {"images", "image"} and code != "empty_list":
        return ImageRefused(message.removeprefix(f"{param}: "), code)
    return EngineError(message)


def told_fingerprint(name: str, variant: str, width: int, parity: Iterable[Any]) -> str:
    """Of a server's model, from what it tells: how exact its graphs are differs between weights."""
    text = json.dumps([name, variant, width, list(parity)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
