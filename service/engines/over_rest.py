"""A server asked over REST: images as raw bodies, answers as safetensors and npy."""

import io
import json
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import httpcore2
import numpy as np
import pybase64
from safetensors.numpy import load

from model.winner_map import Labels
from service.engines.engine import (
    Embedding,
    EngineError,
    ImageRefused,
    ModelSummary,
    of_images,
    refusal,
    told_fingerprint,
)
from service.engines.remote import NUM_THREADS, REQUEST_TIMEOUT_S, RemoteEngine, TryAgain
from service.messages import EmbedImagesRequest, SegmentClass, SegmentImagesRequest

BUSY: Final = {429, 502, 503, 504}
TOO_LARGE: Final = 413
TIMEOUTS: Final = {name: REQUEST_TIMEOUT_S for name in ("connect", "read", "write", "pool")}


class RestEngine(RemoteEngine):
    """One server.

    Args:
        url: Its address, such as `http://localhost:8000`.
        api_key: Where the server wants one.
        pause: Waits so many seconds.
    """

    def __init__(self, url: str, api_key: str | None, **more: Callable[[float], None]) -> None:
        super().__init__(**more)
        parts = urlsplit(url)
        if not parts.hostname or parts.query or parts.fragment:
            raise EngineError(f"--url is an address such as http://localhost:8000, not {url}.")
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._connections = httpcore2.ConnectionPool(max_connections=NUM_THREADS)

    def embed_once(self, request: EmbedImagesRequest) -> Embedding:
        """As `RemoteEngine` has it."""
        options = {
            "outputs": ",".join(request.outputs),
            "normalize": json.dumps(request.normalize),
            "fit": request.fit,
            "resolution": request.resolution,
            "model": request.model,
        }
        given = {name: value for name, value in options.items() if value is not None}
        # The server looks at the bytes; the type only has to be one of images.
        headers = {"Content-Type": "image/jpeg", "Accept": "application/octet-stream"}
        image = request.images[0]
        assert isinstance(image, bytes)
        tensors = load(self._ask("POST", f"/v1/images:embed?{urlencode(given)}", headers, image))
        return {name: tensors[name][0] for name in request.outputs}

    def segment_once(self, request: SegmentImagesRequest) -> Labels:
        """As `RemoteEngine` has it."""
        image = request.images[0]
        assert isinstance(image, bytes)
        body = {
            "image": pybase64.b64encode_as_string(image),
            "classes": [_class_body(c) for c in request.classes],
            "background_classes": [_class_body(c) for c in request.background_classes],
            "background_threshold": request.background_threshold,
            "resolution": request.resolution,
            "fit": request.fit,
            "mode": request.mode,
            "model": request.model,
        }
        given = {name: value for name, value in body.items() if value is not None}
        headers = {"Content-Type": "application/json", "Accept": "application/x-npy"}
        answer = self._ask("POST", "/v1/images:segment", headers, json.dumps(given).encode())
        labels_HW: Labels = np.load(io.BytesIO(answer), allow_pickle=False)
        return labels_HW

    def models_once(self) -> list[ModelSummary]:
        """As `RemoteEngine` has it."""
        return [_summary(card) for card in json.loads(self._ask("GET", "/v1/models"))["data"]]

    def close(self) -> None:
        """As `RemoteEngine` has it."""
        super().close()
        self._connections.close()

    def _ask(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> bytes:
        try:
            answer = self._connections.request(
                method,
                self._url + path,
                headers=list({**self._headers, **(headers or {})}.items()),
                content=body,
                extensions={"timeout": TIMEOUTS},
            )
        except (OSError, httpcore2.TimeoutException, httpcore2.NetworkError) as error:
            raise TryAgain(f"{self._url} cannot be reached; see that it is up.") from error
        except httpcore2.ProtocolError as error:
            raise TryAgain(f"{self._url} does not answer as a REST server does.") from error
        if answer.status == 200:
            return answer.content
        raise failure(self._url, answer)


def failure(url: str, answer: httpcore2.Response) -> Exception:
    """What an answer other than 200 means: try again, a bad image, or the end."""
    try:
        error: dict[str, Any] = json.loads(answer.content)["error"]
    except (ValueError, KeyError, TypeError):
        error = {}
    message = error.get("message") or f"{url} answered with status {answer.status}."
    if answer.status in BUSY:
        waits = [v.decode() for name, v in answer.headers if name.lower() == b"retry-after"]
        return TryAgain(message, float(waits[0]) if waits and waits[0].isdigit() else None)
    code = error.get("code") or "unknown"
    if answer.status == TOO_LARGE:
        return ImageRefused(message, code)
    return refusal(message, code, error.get("param"))


def _class_body(wanted: SegmentClass) -> dict[str, Any] | str:
    if not wanted.prompts:
        return wanted.name
    return {"name": wanted.name, "prompts": list(wanted.prompts)}


def _summary(card: Mapping[str, Any]) -> ModelSummary:
    return ModelSummary(
        name=card["id"],
        variant=card["variant"],
        embed_dim=card["embed_dim"],
        patch_size=card["patch_size"],
        native_size=card["native_size"],
        outputs=of_images(card["outputs"]),
        runtime=card["runtime"],
        precision=card["precision"],
        device=card["device"],
        fingerprint=told_fingerprint(
            card["id"],
            card["variant"],
            card["embed_dim"],
            ([row["file"], row["precision"], row["max_abs_diff"]] for row in card["parity"]),
        ),
    )
