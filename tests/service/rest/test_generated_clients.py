"""Clients in TypeScript and Python, generated from the OpenAPI document, call a server."""

import asyncio
import base64
import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from service.server import Server
from tests.service.conftest import Encode, Serving
from tests.service.rest.conftest import client_of
from tests.tools import TOOLS, find_tool, miss

KEY: Final = "the-key-of-this-test"
NODE_MODULES: Final = TOOLS.parent / "openapi" / "node_modules"
# The generator's name for the package, by the document's title; `tipserve_client` is ours.
GENERATED: Final = "tipserve_api_client"
TYPESCRIPT: Final = Path(__file__).with_name("generated_client.ts")
# The generator knows bodies of bytes by this media type only.
PYTHON_CONFIG: Final = {"content_type_overrides": {"image/*": "application/octet-stream"}}
OPTIONS: Final[dict[str, Any]] = {"outputs": ["cls1", "patches"], "fit": "aspect"}
LIMIT_S: Final = 240

pytestmark = pytest.mark.slow


def run(folder: Path, command: Sequence[str | Path]) -> str:
    """Run a program in a folder; returns what it prints."""
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


async def answers_of(
    call: Callable[[Path, str, bytes], dict[str, Any]], server: Server, folder: Path, image: bytes
) -> tuple[dict[str, Any], Any]:
    """Answers of a generated client, and the answer to the same request without one."""
    async with client_of(server) as client:
        (folder / "openapi.json").write_bytes((await client.get("/openapi.json")).content)
        body = {"image": base64.b64encode(image).decode(), **OPTIONS}
        key = {"Authorization": f"Bearer {KEY}"}
        expected = (await client.post("/v1/images:embed", json=body, headers=key)).json()
    url = f"http://127.0.0.1:{server.ports['http']}"
    return await asyncio.to_thread(call, folder, url, image), expected


def call_by_typescript(folder: Path, url: str, image: bytes) -> dict[str, Any]:
    if not NODE_MODULES.is_dir():
        miss("openapi-typescript is missing: run scripts/install_tools.sh")
    (folder / "node_modules").symlink_to(NODE_MODULES)
    (folder / "package.json").write_text('{"type": "module"}')
    shutil.copy(TYPESCRIPT, folder)
    # Without the flag, fields of requests that have a default are required.
    flags = ["-o", "api.ts", "--default-non-nullable=false"]
    run(folder, [NODE_MODULES / ".bin" / "openapi-typescript", "openapi.json", *flags])
    strict = ["--strict", "--target", "es2022", "--module", "nodenext", TYPESCRIPT.name]
    run(folder, [NODE_MODULES / ".bin" / "tsc", *strict])
    encoded = base64.b64encode(image).decode()
    answers: dict[str, Any] = json.loads(
        run(folder, [find_tool("node"), TYPESCRIPT.with_suffix(".js").name, url, KEY, encoded])
    )
    return answers


async def test_a_typescript_client(serving: Serving, encode_image: Encode, tmp_path: Path) -> None:
    image = encode_image("PNG")
    async with serving(api_keys=KEY, enable_management=True) as server:
        answers, expected = await answers_of(call_by_typescript, server, tmp_path, image)
    statuses = {name: answer["status"] for name, answer in answers.items()}
    assert statuses == {name: 422 if name == "wrong" else 200 for name in answers}, answers
    for name in ("json", "form", "raw"):
        assert answers[name]["content"] == expected
    assert len(answers["classes"]["content"]["data"][0]["classes"]) == 1
    assert answers["texts"]["content"]["data"][0]["embedding"]
    assert answers["models"]["content"]["data"][0]["id"] == "fake"
    assert answers["index"]["content"][0]["name"] == "fake"
    assert answers["wrong"]["content"]["error"]["param"] == "outputs"


def call_by_python(folder: Path, url: str, image: bytes) -> dict[str, Any]:
    """Answers of the generated client as dictionaries, by how they were asked for."""
    (folder / "config.json").write_text(json.dumps(PYTHON_CONFIG))
    flags = ["--config=config.json", "--meta=none", "--fail-on-warning"]
    run(folder, [find_tool("openapi-python-client"), "generate", "--path=openapi.json", *flags])

    def load(name: str) -> Any:
        return importlib.import_module(f"{GENERATED}.{name}")

    models, types, embed = load("models"), load("types"), load("api.images.embed_images")
    outputs, fit = models.EmbedImagesBodyOutputsItem, models.EmbedImagesBodyFit.ASPECT
    body = models.EmbedImagesBody.from_dict({"image": base64.b64encode(image).decode(), **OPTIONS})
    assert (body.outputs, body.fit) == ([outputs.CLS1, outputs.PATCHES], fit)
    query = {
        "outputs": [models.EmbedImagesOutputsItem.CLS1, models.EmbedImagesOutputsItem.PATCHES],
        "fit": models.EmbedImagesFit.ASPECT,
    }
    file = types.File(payload=image, file_name="image.png", mime_type="image/png")
    form = models.EmbedImagesFilesBody(
        image=file,
        outputs=[models.EmbedImagesFilesBodyOutputsItem(name) for name in OPTIONS["outputs"]],
        fit=models.EmbedImagesFilesBodyFit.ASPECT,
    )
    texts = models.EmbedTextsBody(texts=["dog"])
    with load("client").AuthenticatedClient(base_url=url, token=KEY) as client:
        found = {
            "json": embed.sync(client=client, body=body),
            "form": embed.sync(client=client, body=form),
            "raw": embed.sync(client=client, body=file, **query),
            "texts": load("api.texts.embed_texts").sync(client=client, body=texts),
            "models": load("api.models.list_models").sync(client=client),
            "index": load("api.repository.list_repository").sync(client=client),
        }
    return {name: answer.to_dict() for name, answer in found.items()}


async def test_a_python_client(
    serving: Serving, encode_image: Encode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = encode_image("PNG")
    monkeypatch.syspath_prepend(tmp_path)
    async with serving(api_keys=KEY) as server:
        answers, expected = await answers_of(call_by_python, server, tmp_path, image)
    for name in [name for name in sys.modules if name.partition(".")[0] == GENERATED]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("json", "form", "raw"):
        assert answers[name] == expected
    assert answers["texts"]["data"][0]["embedding"]
    assert answers["models"]["data"][0]["id"] == "fake"
    assert answers["index"]["code"] == "management_not_enabled"
