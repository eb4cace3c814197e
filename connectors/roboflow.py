"""Roboflow's inference server, as inference-sdk calls it: SAM 3 by concepts, and CLIP.

Source: inference_sdk/http/client.py of inference-sdk 1.8.3.
"""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AliasChoices, BaseModel, Field
from starlette.routing import Route

from connectors.app import Backend, Refused, get, post
from connectors.regions import find_regions, outline
from tipserve_client import Example, Instance


class Image(BaseModel):
    """An image, by URL or in base64."""

    type: Literal["url", "base64"]
    value: str


class Box(BaseModel):
    """A box in pixels, from its upper left corner by its size or its opposite corner."""

    x: float = Field(validation_alias=AliasChoices("x", "x0"))
    y: float = Field(validation_alias=AliasChoices("y", "y0"))
    width: float = 0
    height: float = 0
    x1: float | None = None
    y1: float | None = None

    def example(self) -> Example:
        """The patches in the box."""
        width = self.width if self.x1 is None else self.x1 - self.x
        height = self.height if self.y1 is None else self.y1 - self.y
        return Example(box=(self.x, self.y, width, height))


class Prompt(BaseModel):
    """A concept: words, or boxes around examples (label 1); boxes of label 0 are refused."""

    type: str = "text"
    text: str | None = None
    boxes: list[Box] = []
    box_labels: list[int] | None = None
    output_prob_thresh: float | None = None


class Concepts(BaseModel):
    """The body of `/sam3/concept_segment`."""

    image: Image
    prompts: list[Prompt]
    output_prob_thresh: float = 0.5
    format: Literal["polygon", "rle", "json"] = "polygon"


class Embedded(BaseModel):
    """The body of `/clip/embed_image` and of `/clip/embed_text`."""

    image: Image | list[Image] = []
    text: str | list[str] = []


class Compared(BaseModel):
    """The body of `/clip/compare`."""

    subject: Image | str
    prompt: Image | str | list[Image] | list[str] | dict[str, Image | str]


def read(backend: Backend, image: Image) -> bytes:
    """The bytes of an image."""
    load = backend.images.fetch if image.type == "url" else backend.images.read_base64
    return load(image.value)


def segment(backend: Backend, body: Concepts) -> Any:
    """The regions of each concept."""
    begin, image, results = time.perf_counter(), read(backend, body.image), []
    for index, prompt in enumerate(body.prompts):
        if any(label != 1 for label in prompt.box_labels or ()):
            raise Refused(f"prompts[{index}]: boxes of what to leave out are not supported.")
        if not prompt.boxes and not prompt.text:
            raise Refused(f"prompts[{index}]: give a text or boxes.")
        classes = {prompt.text or "example": [box.example() for box in prompt.boxes]}
        given = prompt.output_prob_thresh
        least = body.output_prob_thresh if given is None else given
        found = find_regions(backend, image, classes)
        kept = [write(region, body.format) for region in found if region.score >= least]
        echo = {"prompt_index": index, "type": prompt.type, "text": prompt.text}
        results.append({"prompt_index": index, "echo": echo, "predictions": kept})
    return {"prompt_results": results, "time": time.perf_counter() - begin}


def write(region: Instance, form: str) -> dict[str, Any]:
    """A prediction: a polygon, or run lengths as pycocotools reads them."""
    rle = {"size": region.size, "counts": region.counts}
    masks: Any = rle if form == "rle" else [outline(region)]
    return {"masks": masks, "confidence": region.score, "format": form}


def embed(backend: Backend, items: Sequence[Image | str]) -> NDArray[np.float32]:
    """Unit vectors [items, D]; all items are of one kind."""
    texts = [item for item in items if isinstance(item, str)]
    if texts:
        vectors: NDArray[np.float32] = backend.client.embed_texts(texts, **backend.asked)
        return vectors
    images = [read(backend, item) for item in items if isinstance(item, Image)]
    found = backend.client.embed_images(images, outputs="cls1", normalize=True, **backend.asked)
    return np.stack([one.cls1 for one in found if one.cls1 is not None])


def embeddings(backend: Backend, body: Embedded) -> Any:
    """The embeddings of one or several images or texts."""
    begin, given = time.perf_counter(), body.image or body.text
    if not given:
        raise Refused("Give an image or a text.")
    found = embed(backend, given if isinstance(given, list) else [given])
    return {"frame_id": None, "embeddings": found, "time": time.perf_counter() - begin}


def compare(backend: Backend, body: Compared) -> Any:
    """Cosines of a subject and prompts, in the form of the prompts."""
    begin, prompt = time.perf_counter(), body.prompt
    values = prompt.values() if isinstance(prompt, dict) else prompt
    items = [values] if isinstance(values, Image | str) else list(values)
    (subject,) = embed(backend, [body.subject])
    found: Any = (embed(backend, items) @ subject).tolist() if items else []
    if isinstance(prompt, dict):
        found = dict(zip(prompt, found, strict=True))
    return {"similarity": found, "time": time.perf_counter() - begin}


def routes(backend: Backend) -> list[Route]:
    """The routes that inference-sdk calls."""
    return [
        get("/", lambda: {"status": "ok"}),
        get("/health", lambda: {"status": "ok"}),
        post("/sam3/concept_segment", Concepts, partial(segment, backend)),
        post("/clip/embed_image", Embedded, partial(embeddings, backend)),
        post("/clip/embed_text", Embedded, partial(embeddings, backend)),
        post("/clip/compare", Compared, partial(compare, backend)),
    ]
