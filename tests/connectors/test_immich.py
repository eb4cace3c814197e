"""Requests of Immich's server, as its source has them."""

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest

from connectors import immich
from connectors.app import Backend, new_app
from tests.connectors.conftest import Dogs
from tests.tipserve_cli.conftest import WIDTH, image  # noqa: F401 - a fixture

NAME = "ViT-B-16-SigLIP2__webli"
VISUAL = {"clip": {"visual": {"modelName": NAME}}}
FACES = {"facial-recognition": {"detection": {"modelName": "buffalo_l"}}}


@pytest.fixture
def file(image: Path) -> bytes:  # noqa: F811
    return image.read_bytes()


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Immich's model has the width of the fake."""
    monkeypatch.setitem(immich.WIDTHS, NAME, WIDTH)


async def ask(backend: Backend, entries: Any, **parts: Any) -> httpx2.Response:
    transport = httpx2.ASGITransport(new_app(immich.routes(backend)), raise_app_exceptions=False)
    files = {"image": parts["file"]} if "file" in parts else None
    data = {"entries": json.dumps(entries), **{k: v for k, v in parts.items() if k == "text"}}
    async with httpx2.AsyncClient(transport=transport, base_url="http://connector") as client:
        assert (await client.get("/ping")).text == "pong"
        return await client.post("/predict", data=data, files=files)


async def test_images_and_texts_are_json_in_a_string(backend: Backend, file: bytes) -> None:
    found = (await ask(backend, VISUAL, file=file)).json()
    assert json.loads(found.pop("clip")) == [1, 0, 0, 0]
    assert found == {"imageWidth": 60, "imageHeight": 40}
    textual = {"clip": {"textual": {"modelName": NAME, "options": {"language": "en"}}}}
    found = (await ask(backend, textual, text="a dog")).json()
    assert json.loads(found["clip"]) == [1, 0, 0, 0]


async def test_a_model_of_another_width_is_refused(
    backend: Backend, file: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ViT-B-32__openai", "ViT-L-16-SigLIP2-256__webli"):
        answer = await ask(backend, {"clip": {"visual": {"modelName": name}}}, file=file)
        assert answer.status_code == 400
        assert NAME in answer.json()["message"]


async def test_other_tasks_are_the_upstreams(
    backend: Backend, file: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def post(url: str, **given: Any) -> httpx2.Response:
        asked.append((url, json.loads(given["data"]["entries"]), given["files"]["image"]))
        request = httpx2.Request("POST", url)
        return httpx2.Response(200 if len(asked) < 2 else 500, json=faces, request=request)

    faces = {"facial-recognition": [{"score": 1}], "imageWidth": 1, "imageHeight": 1}
    monkeypatch.setattr(httpx2, "post", post)
    both = Backend(client=backend.client, images=backend.images, upstream="http://own:3003/")
    found = (await ask(both, {**VISUAL, **FACES}, file=file)).json()
    assert asked == [("http://own:3003/predict", FACES, file)]
    assert found["facial-recognition"] == [{"score": 1}]
    assert json.loads(found["clip"])[0] == 1
    assert (await ask(both, FACES, file=file)).status_code == 502
    assert (await ask(both, VISUAL, file=file)).status_code == 200


async def test_without_an_upstream_a_mixed_list_is_not_refused(
    backend: Backend, file: bytes
) -> None:
    found = (await ask(backend, {**VISUAL, **FACES}, file=file)).json()
    assert set(found) == {"clip", "imageWidth", "imageHeight"}
    assert (await ask(backend, FACES, file=file)).status_code == 501


async def test_bad_input_and_a_server_that_is_away(
    backend: Backend, file: bytes, dogs: Dogs
) -> None:
    assert (await ask(backend, VISUAL, file=b"no image")).status_code == 400
    assert (await ask(backend, VISUAL, text="a dog")).status_code == 400
    assert (await ask(backend, ["clip"], file=file)).status_code == 400
    dogs.is_away = True
    assert (await ask(backend, VISUAL, file=file)).status_code == 503
    dogs.is_away = False
    assert (await ask(backend, VISUAL, file=file)).status_code == 200
