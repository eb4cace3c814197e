"""NVIDIA's stock `tritonclient`: options of both kinds of client, errors, management, streams."""

import asyncio
import gc
import io
import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from numpy.typing import NDArray
from PIL import Image
from tritonclient.utils import InferenceServerException

from model.package import ModelPackage
from tests.end_to_end.client import over_grpc
from tests.processes.server import Server

Photo = Callable[..., bytes]
LIMIT_S = 60
CLIENTS: dict[str, Any] = {
    "http": tritonclient.http,
    "http.aio": tritonclient.http.aio,
    "grpc": tritonclient.grpc,
    "grpc.aio": tritonclient.grpc.aio,
}
EVERY_CLIENT = pytest.mark.parametrize("client", CLIENTS)
BOTH_PROTOCOLS = pytest.mark.parametrize("client", ["http", "grpc"])
# The aio client of 2.73 leaves connections of error answers to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:Unclosed connection:ResourceWarning")


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Collect garbage of the client now, so that its warning does not fail a later test."""
    yield
    if "http.aio" in request.node.name:
        gc.collect()


def ask(service: Server, client: str, method: str, *args: Any, **options: Any) -> Any:
    """Call a method of a new client; returns plain values instead of protobuf."""
    transport, _, is_aio = client.partition(".")
    url = f"127.0.0.1:{service.ports[transport]}"
    if transport == "grpc" and method.startswith("get_"):
        options["as_json"] = True
    if not is_aio:
        with CLIENTS[client].InferenceServerClient(url) as sync:
            return getattr(sync, method)(*args, **options)

    async def ask_aio() -> Any:
        async with CLIENTS[client].InferenceServerClient(url) as connected:
            return await getattr(connected, method)(*args, **options)

    return asyncio.run(ask_aio())


def tensor(client: str, name: str, array: NDArray[Any], **options: Any) -> Any:
    """Create an input for this client."""
    datatype = {"u": "UINT8", "f": "FP32", "O": "BYTES"}[array.dtype.kind]
    made = CLIENTS[client.partition(".")[0]].InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, **options)
    return made


def as_bytes(*items: bytes) -> NDArray[np.object_]:
    return np.array(items, dtype=np.object_)


def arrays_of(result: Any) -> dict[str, NDArray[Any]]:
    response = result.get_response()
    outputs = response["outputs"] if isinstance(response, dict) else response.outputs
    names = [o["name"] if isinstance(o, dict) else o.name for o in outputs]
    return {name: result.as_numpy(name) for name in names}


@EVERY_CLIENT
def test_images_and_texts_with_every_option(service: Server, photo: Photo, client: str) -> None:
    decoded = np.asarray(Image.open(io.BytesIO(photo(1, (90, 60), "PNG"))).convert("RGB"))
    image = tensor(client, "pixels", decoded[None])
    texts = tensor(client, "text", as_bytes(b"a dog", "Grün".encode()))
    result = ask(
        service,
        client,
        "infer",
        "tiny",
        [image, texts],
        model_version="1",
        request_id="from-test",
        priority=1,
        timeout=LIMIT_S * 1_000_000,
        parameters={"resolution": 28, "fit": "aspect", "normalize": False, "templates": "tcl"},
    )
    response = result.get_response()
    assert "from-test" in {getattr(response, "id", None), dict(_plain(response)).get("id")}
    arrays = arrays_of(result)
    assert {name: array.shape for name, array in arrays.items()} == {
        "patch_embeddings": (1, 2, 3, 32),
        "cls1": (1, 32),
        "text_embeddings": (2, 32),
    }
    fields = {"texts": ["a dog", "Grün"], "templates": "tcl", "normalize": False}
    native = over_grpc(service, "embed_texts", fields)["1.embedding"]
    np.testing.assert_array_equal(arrays["text_embeddings"][1], native)


@pytest.fixture(scope="module")
def managed(
    run_service: Callable[..., Any],
    tiny_package: ModelPackage,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """Service with model management, and a second package in its repository."""
    folder = tmp_path_factory.mktemp("repository")
    copytree(tiny_package.path, Path(folder) / "second")
    with run_service("--enable-management", f"--model-repository={folder}") as running:
        yield running


@BOTH_PROTOCOLS
def test_load_and_unload(managed: Server, photo: Photo, client: str) -> None:
    def index() -> dict[str, str]:
        found = ask(managed, client, "get_model_repository_index")
        listed = found["models"] if isinstance(found, dict) else found
        return {entry["name"]: entry["state"] for entry in listed}

    assert index() == {"tiny": "READY", "second": "UNAVAILABLE"}
    ask(managed, client, "load_model", "second")
    assert index() == {"tiny": "READY", "second": "READY"}
    image = tensor(client, "image", as_bytes(photo(1)))
    assert ask(managed, client, "infer", "second", [image]).as_numpy("cls1").shape == (1, 32)
    ask(managed, client, "unload_model", "second")
    assert index()["second"] in {"UNLOADING", "UNAVAILABLE"}
    with pytest.raises(InferenceServerException, match="second"):
        ask(managed, client, "infer", "second", [image])
    for method, name in (("load_model", "missing"), ("unload_model", "second")):
        with pytest.raises(InferenceServerException, match=name):
            ask(managed, client, method, name)
    with pytest.raises(InferenceServerException, match="config"):
        ask(managed, client, "load_model", "second", config="{}")


def test_streams_answer_in_order_also_after_a_bad_item(service: Server, photo: Photo) -> None:
    good = [tensor("grpc", "image", as_bytes(photo(seed))) for seed in range(4)]
    bad = tensor("grpc", "image", as_bytes(b"no image"))
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    url = f"127.0.0.1:{service.ports['grpc']}"
    with tritonclient.grpc.InferenceServerClient(url) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for number in range(50):
            given = bad if number == 17 else good[number % 4]
            client.async_stream_infer(
                *("tiny", [given]),
                request_id=str(number),
                enable_empty_final_response=number == 3,
            )
        found = [answers.get(timeout=LIMIT_S) for _ in range(50)]
        client.stop_stream()
    assert "images[0]" in str(found[17][1].message())
    results = [(n, result) for n, (result, _) in enumerate(found) if n != 17]
    assert [result.get_response().id for _, result in results] == [str(n) for n, _ in results]
    for number, result in results[:4]:
        alone = ask(service, "grpc", "infer", "tiny", [good[number]])
        assert (alone.as_numpy("cls1") * result.as_numpy("cls1")).sum() > 0.9999


def _plain(response: Any) -> dict[str, Any]:
    return response if isinstance(response, dict) else {}
