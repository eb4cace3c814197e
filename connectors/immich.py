"""Immich's machine learning, for smart search: vectors of images and texts.

Other tasks (faces, text in images) go to an upstream, which is Immich's own service. After an
answer that is not 2xx, Immich asks its next URL, whose vectors would not fit into the index.

Source: the requests of Immich's server; not tried against Immich.
"""

import io
from typing import Any, Final

import httpx2
import orjson
from PIL import Image
from pydantic import TypeAdapter
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from connectors.app import Backend, Form, Refused, get, post_form

# Immich knows no others: models of the same width, under whose names ours answers.
WIDTHS: Final = {
    "ViT-B-16-SigLIP2__webli": 768,
    "ViT-L-16-SigLIP2-256__webli": 1024,
    "ViT-SO400M-14-SigLIP2__webli": 1152,
    "ViT-gopt-16-SigLIP2-256__webli": 1536,
}
UPSTREAM_LIMIT_S: Final = 60.0
# Tasks, and of each its parts (visual, textual, detection, ...) with name and options.
ENTRIES: Final = TypeAdapter(dict[str, dict[str, dict[str, Any]]])


def check_name(name: Any, width: int) -> None:
    """Refuse a model whose vectors have another width.

    Raises:
        Refused: Immich is set to such a model.
    """
    if WIDTHS.get(name) != width:
        fitting = [known for known, size in WIDTHS.items() if size == width]
        raise Refused(
            f"Vectors of the model served have {width} numbers. Set the CLIP model of Immich to "
            f"{' or '.join(fitting) or 'none'}, not {name!r}, and run smart search for all images."
        )


def size_of(image: bytes) -> tuple[int, int]:
    """Width and height, from the header."""
    try:
        with Image.open(io.BytesIO(image)) as opened:
            return opened.size
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise Refused("The image cannot be decoded.") from error


def embed(backend: Backend, part: dict[str, dict[str, Any]], form: Form) -> str:
    """The vector of the image or of the text, as JSON in a string."""
    image, text = form.get("image"), form.get("text")
    if "visual" in part and isinstance(image, bytes):
        asked: Any = {"outputs": "cls1", "normalize": True, **backend.asked}
        (found,) = backend.client.embed_images(image, **asked)
        vector, name = found.cls1, part["visual"].get("modelName")
    elif "textual" in part and isinstance(text, str):
        (vector,) = backend.client.embed_texts(text, **backend.asked)
        name = part["textual"].get("modelName")
    else:
        raise Refused("clip needs visual with the file image, or textual with the field text.")
    check_name(name, len(vector))
    return orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY).decode()


def ask_upstream(backend: Backend, entries: dict[str, Any], form: Form) -> Any:
    """The upstream's answer to the tasks that are not ours; nothing without an upstream."""
    if not backend.upstream:
        return {}
    image, text = form.get("image"), form.get("text")
    data = {"entries": orjson.dumps(entries).decode()}
    data |= {"text": text} if isinstance(text, str) else {}
    files = {"image": image} if isinstance(image, bytes) else None
    url = f"{backend.upstream.rstrip('/')}/predict"
    try:
        answer = httpx2.post(url, data=data, files=files, timeout=UPSTREAM_LIMIT_S)
        answer.raise_for_status()
        return answer.json()
    except (httpx2.HTTPError, ValueError) as error:
        raise Refused(f"The upstream {backend.upstream} failed: {error}.", 502) from error


def predict(backend: Backend, form: Form) -> Any:
    """The results of all tasks; of those that are not ours, what the upstream answers."""
    entries = ENTRIES.validate_json(form.get("entries", ""))
    others = {task: entry for task, entry in entries.items() if task != "clip"}
    if not backend.upstream and "clip" not in entries:
        raise Refused(f"No upstream for {', '.join(others) or 'no task'}; turn it off.", 501)
    found = ask_upstream(backend, others, form) if others else {}
    if "clip" in entries:
        found["clip"] = embed(backend, entries["clip"], form)
    image = form.get("image")
    if isinstance(image, bytes):
        found["imageWidth"], found["imageHeight"] = size_of(image)
    return found


def routes(backend: Backend) -> list[Route]:
    """The routes that Immich calls."""
    return [
        get("/", lambda: {"message": "Immich ML"}),
        Route("/ping", lambda _: PlainTextResponse("pong")),
        get("/health", lambda: {"status": "ok"}),
        post_form("/predict", lambda form: predict(backend, form)),
    ]
