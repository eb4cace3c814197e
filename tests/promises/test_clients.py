"""Stock clients of other projects work as their users call them. All hold bare, and behind a proxy.

KServe's client is installed apart from this project: `scripts/tools/clients.sh`.
"""

import base64
from typing import Any

import numpy as np
import openai
import pytest
import tritonclient.grpc
import tritonclient.http
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from tests.processes.server import Server, photo, run
from tests.tools import TOOLS, miss
from tipserve_client import Client

NAME = "tipserve-student"
CLIENTS = TOOLS.parent / "clients-venv" / "bin" / "python"
KSERVE = f"""
import asyncio, sys
import numpy as np
from kserve import (
    InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig
)

async def main(protocol, address):
    image = InferInput(name="image", shape=[1], datatype="BYTES")
    content = open("examples/squirrel.jpg", "rb").read()
    image.set_data_from_numpy(np.array([content], dtype=object), binary_data=True)
    request = InferRequest(model_name="{NAME}", infer_inputs=[image])
    if protocol == "rest":
        client = InferenceRESTClient(RESTConfig(protocol="v2"))
        assert await client.is_model_ready(address, "{NAME}")
        answer = await client.infer(address, request, model_name="{NAME}")
    else:
        client = InferenceGRPCClient(address)
        assert await client.is_model_ready("{NAME}")
        answer = await client.infer(request)
    print([output.shape for output in answer.outputs if output.name == "cls1"])

asyncio.run(main(*sys.argv[1:]))
"""


def test_openai(student: Server) -> None:
    image, texts = photo(1), ["a dog", "red house"]
    uri = f"data:image/jpeg;base64,{base64.b64encode(image).decode()}"
    with Client(student.rest) as native:
        words = native.embed_texts(texts)
        seen: Any = native.embed_images(image)[0]
    expected = np.stack([words[0], seen.cls1, words[1]])
    options: dict[str, Any] = {"model": NAME, "input": [texts[0], uri, texts[1]]}
    with openai.OpenAI(base_url=f"{student.rest}/v1", api_key="none", max_retries=0) as client:
        create: Any = client.embeddings.create
        # The client asks for base64 by default, and decodes it.
        for extra in ({}, {"encoding_format": "float"}, {"user": "me"}):
            np.testing.assert_allclose(rows(create(**options, **extra)), expected, atol=1e-5)
        short = rows(create(**options, dimensions=8))
        lengths = np.linalg.norm(expected[:, :8], axis=1, keepdims=True)
        np.testing.assert_allclose(short, expected[:, :8] / lengths, atol=1e-5)
        items = [{"text": texts[0]}, {"type": "image_url", "image_url": {"url": uri}}]
        found = rows(create(model=NAME, input=items))
        np.testing.assert_allclose(found, expected[:2], atol=1e-5)
        # Token ids, as LangChain sends them: " dog", of the vocabulary of these tests.
        tokens = rows(create(model=NAME, input=[[0, 1]]))
        np.testing.assert_allclose(tokens, expected[:1], atol=1e-5)
        (model,) = client.models.list().data
        assert client.models.retrieve(model.id).id == NAME
        with pytest.raises(openai.NotFoundError, match="No model 'other'"):
            client.models.retrieve("other")
        with pytest.raises(openai.BadRequestError) as caught:
            create(model=NAME, input=["a dog", "data:image/png;base64,aGVsbG8="])
        assert (caught.value.code, caught.value.param) == ("invalid_image", "input[1]")


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_tritonclient(student: Server, protocol: str) -> None:
    module: Any = {"http": tritonclient.http, "grpc": tritonclient.grpc}[protocol]
    address = {"http": student.rest.removeprefix("http://"), "grpc": student.grpc}[protocol]
    plain: dict[str, Any] = {"as_json": True} if protocol == "grpc" else {}
    with Client(student.rest) as native:
        seen: Any = native.embed_images(photo(1), outputs=["patches", "cls1"])[0]
        words = native.embed_texts(["a dog"])
    with module.InferenceServerClient(address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(NAME)
        assert client.get_server_metadata(**plain)["name"] == "tipserve"
        inputs = [one["name"] for one in client.get_model_metadata(NAME, **plain)["inputs"]]
        assert inputs == ["image", "pixels", "pixel_values", "text"]
        config = client.get_model_config(NAME, **plain)
        assert config.get("config", config)["name"] == NAME

        image = tensor(module, "image", np.array([photo(1)], object))
        asked = {"timeout": 9_000_000, "priority": 1}
        usual = client.infer(NAME, [image], **asked)
        np.testing.assert_allclose(usual.as_numpy("cls1"), seen.cls1[None], atol=1e-5)
        np.testing.assert_allclose(usual.as_numpy("patch_embeddings")[0], seen.patches, atol=1e-5)
        text = tensor(module, "text", np.array([b"a dog"], object))
        outputs = [module.InferRequestedOutput("text_embeddings")]
        both = client.infer(NAME, [image, text], outputs=outputs)
        np.testing.assert_allclose(both.as_numpy("text_embeddings"), words, atol=1e-5)
        pixels = tensor(module, "pixels", np.zeros((2, 112, 112, 3), np.uint8))
        assert client.infer(NAME, [pixels]).as_numpy("cls1").shape == (2, 192)

        count = statistics(client, plain)
        client.infer(NAME, [image])
        assert statistics(client, plain) == count + 1
        with pytest.raises(InferenceServerException, match="No model 'other'"):
            client.infer("other", [image])


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_kserve(student: Server, protocol: str) -> None:
    if not list(CLIENTS.parents[1].glob("lib/*/site-packages/kserve")):
        miss("kserve is missing: run scripts/tools/clients.sh")
    done = run(CLIENTS, "-c", KSERVE, protocol, getattr(student, protocol), check=False)
    assert done.stdout.strip() == "[[1, 192]]", done.stderr[-2000:]


def rows(answer: Any) -> NDArray[np.float32]:
    assert [item.index for item in answer.data] == list(range(len(answer.data)))
    return np.array([item.embedding for item in answer.data], dtype=np.float32)


def tensor(module: Any, name: str, array: NDArray[Any]) -> Any:
    made = module.InferInput(
        name, list(array.shape), "UINT8" if array.dtype == np.uint8 else "BYTES"
    )
    made.set_data_from_numpy(array)
    return made


def statistics(client: Any, plain: dict[str, Any]) -> int:
    """Requests that the model has answered."""
    found: Any = client.get_inference_statistics(NAME, **plain)["model_stats"][0]
    return int(found["inference_stats"]["success"]["count"])
