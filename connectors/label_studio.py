"""Label Studio's ML backend: regions and choices of tasks, by the tags of the project's config.

Source: label_studio/ml/api_connector.py of Label Studio 1.23.2.
"""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import httpx2
from pydantic import BaseModel
from starlette.routing import Route

from connectors.app import AnyBody, Backend, Refused, get, post
from connectors.brush import pack_mask
from connectors.label_config import Control, read_config, read_examples
from connectors.regions import find_regions, outline
from tipserve_client import Instance, InvalidRequest

logger = logging.getLogger(__name__)


class Predict(BaseModel):
    """The body of `/predict`."""

    tasks: list[dict[str, Any]]
    label_config: str
    params: dict[str, Any] | None = None


def token_headers(token: str, home: str) -> Callable[[httpx2.Client], Mapping[str, str]]:
    """Makes the headers for images; a personal token is a JWT and buys a short-lived one."""

    def headers(http: httpx2.Client) -> Mapping[str, str]:
        if token.count(".") != 2:
            return {"Authorization": f"Token {token}"}
        answer = http.post(f"{home.rstrip('/')}/api/token/refresh/", json={"refresh": token})
        if not answer.is_success:
            raise Refused(f"Label Studio refuses the token: status {answer.status_code}.", 502)
        return {"Authorization": f"Bearer {answer.json()['access']}"}

    return headers


def write_region(control: Control, region: Instance) -> dict[str, Any]:
    """A region as the tag stores it: percent of the image, or run lengths."""
    height, width = region.size
    value: dict[str, Any] = {control.tag.lower(): [region.name]}
    if control.tag == "PolygonLabels":
        points = [[100 * x / width, 100 * y / height] for x, y in outline(region)]
        value |= {"points": points, "closed": True}
    elif control.tag == "RectangleLabels":
        left, top, across, down = region.box
        value |= {"x": 100 * left / width, "y": 100 * top / height, "rotation": 0}
        value |= {"width": 100 * across / width, "height": 100 * down / height}
    else:
        value |= {"format": "rle", "rle": pack_mask(region.mask)}
    size = {"original_width": width, "original_height": height, "image_rotation": 0}
    return {**_entry(control, value, region.score), **size}


def _entry(control: Control, value: dict[str, Any], score: float) -> dict[str, Any]:
    names = {"from_name": control.name, "to_name": control.image, "type": control.tag.lower()}
    return {**names, "value": value, "score": score}


def annotate(backend: Backend, task: Mapping[str, Any], controls: list[Control], shown: Any) -> Any:
    """The prediction of a task; with examples only what they show."""
    found = []
    for control in controls:
        examples = {label: shown[label] for label in shown if label in control.prompts}
        url = (task.get("data") or {}).get(control.field)
        if not isinstance(url, str):
            raise Refused(f"Task {task.get('id')} has no field {control.field!r} with a URL.")
        if shown and (not examples or control.tag == "Choices"):
            continue
        image = backend.images.fetch(url)
        if control.tag == "Choices":
            asked = {"top_k": 1, **backend.asked}
            ((best,),) = backend.client.classify(image, control.prompts, **asked)
            found.append(_entry(control, {"choices": [best.name]}, best.probability))
        else:
            regions = find_regions(backend, image, examples or control.prompts)
            found += [write_region(control, region) for region in regions]
    return {"result": found, "score": sum(one["score"] for one in found) / max(len(found), 1)}


def predict(backend: Backend, body: Predict) -> Any:
    """The predictions of tasks. One that fails is an error if it is the only one."""
    controls, version = read_config(body.label_config), backend.model_version()
    context = (body.params or {}).get("context") or {}
    try:
        shown = read_examples(context.get("result") or ())
    except (AttributeError, KeyError, TypeError) as error:
        raise Refused("params.context has a shape that is no box or point.") from error
    results = []
    for task in body.tasks:
        try:
            found = {**annotate(backend, task, controls, shown), "model_version": version}
        except (Refused, InvalidRequest) as error:
            if len(body.tasks) == 1:
                raise
            # Label Studio skips a result without `result`, and keeps the others.
            logger.warning("task %s: %s", task.get("id"), error)
            found = {"error": str(error)}
        results.append(found)
    return {"results": results, "model_version": version}


def routes(backend: Backend) -> list[Route]:
    """The routes that Label Studio calls."""

    def version(_: AnyBody | None = None) -> Any:
        return {"model_version": (found := backend.model_version()), "versions": [found]}

    health = {"status": "UP", "model_class": "tipserve"}
    return [
        get("/", lambda: health),
        get("/health", lambda: health),
        get("/versions", version),
        post("/setup", AnyBody, version),
        post("/predict", Predict, partial(predict, backend)),
        # Sent when annotations change; there is nothing to train.
        post("/webhook", AnyBody, lambda _: {}),
        post("/train", AnyBody, lambda _: {}),
    ]
