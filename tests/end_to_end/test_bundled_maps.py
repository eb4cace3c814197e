"""The bundled model's depth and normals: one answer over every protocol, that of its graphs."""

import base64
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import numpy as np
import onnxruntime
import pytest
from PIL import Image

from model.dense_maps import MapTask, make_map
from model.graphs import EMBEDDING_TAPS, VISION_FILE, graph_file
from model.package import ModelPackage, open_package
from service.grpc.generated import open_inference_pb2 as pb
from service.grpc.generated.open_inference_pb2_grpc import GRPCInferenceServiceStub

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Service

LIMIT_S = 60.0
SIDE = 320
SIZE = (SIDE + 40, SIDE - 60)  # width and height of the second image
TASKS: tuple[MapTask, ...] = ("depth", "normals")


@pytest.fixture(scope="module")
def bundled(project_root: Path) -> ModelPackage:
    return open_package(project_root / "model" / "bundled")


@pytest.fixture(scope="module")
def service(run_service: Callable[..., Any], bundled: ModelPackage) -> Iterator["Service"]:
    with run_service("--precision=fp32", packages=(bundled,)) as running:
        yield running


@pytest.fixture
def images(photo: Callable[..., bytes]) -> list[bytes]:
    """One of the native size, which is not scaled, and one of another."""
    return [photo(0, (SIDE, SIDE), "PNG"), photo(1, SIZE)]


@pytest.fixture(scope="module")
def run_graphs(bundled: ModelPackage) -> Callable[[bytes], dict[str, Any]]:
    """Runs the vision graph and then each head, on an image of the native size."""
    files = {"vision": VISION_FILE} | {task: graph_file(task) for task in TASKS}
    sessions = {
        name: onnxruntime.InferenceSession(bundled.file(file), providers=["CPUExecutionProvider"])
        for name, file in files.items()
    }

    def run(image: bytes) -> dict[str, Any]:
        pixels_HW3 = np.asarray(Image.open(BytesIO(image)), np.float32) / 255
        pixels_13HW = pixels_HW3.transpose(2, 0, 1)[None]
        cls, patches = sessions["vision"].run(list(EMBEDDING_TAPS), {"pixel_values": pixels_13HW})
        grid = SIDE // bundled.manifest.patch_size
        taps = {
            "tap_cls": cls[:, None],
            "tap_patches": patches.reshape(1, 1, grid, grid, patches.shape[-1]),
        }
        return {task: sessions[task].run([task], taps)[0][0] for task in TASKS}

    return run


def over_v2_rest(service: "Service", name: str, image: bytes) -> dict[str, Any]:
    """Maps by REST's half of the Open Inference Protocol."""
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES"}
    body = {
        "inputs": [{**tensor, "data": [base64.b64encode(image).decode()]}],
        "outputs": [{"name": task} for task in TASKS],
    }
    url = f"http://127.0.0.1:{service.ports['http']}/v2/models/{name}/infer"
    answer = httpx.post(url, json=body, timeout=LIMIT_S).json()
    return {
        one["name"]: np.array(one["data"], np.float32).reshape(one["shape"])[0]
        for one in answer["outputs"]
    }


def over_v2_grpc(service: "Service", name: str, image: bytes) -> dict[str, Any]:
    """Maps by gRPC's half of it."""
    tensor = pb.ModelInferRequest.InferInputTensor(
        name="image",
        datatype="BYTES",
        shape=[1],
        contents=pb.InferTensorContents(bytes_contents=[image]),
    )
    outputs = [pb.ModelInferRequest.InferRequestedOutputTensor(name=task) for task in TASKS]
    request = pb.ModelInferRequest(model_name=name, inputs=[tensor], outputs=outputs)
    with grpc.insecure_channel(f"127.0.0.1:{service.ports['grpc']}") as channel:
        answer = GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=LIMIT_S)
    return {
        one.name: np.frombuffer(raw, np.float32).reshape(tuple(one.shape))[0]
        for one, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)
    }


@pytest.mark.parametrize("size", ["image", "model"])
def test_rest_and_grpc_give_the_maps_of_the_graphs(
    service: "Service",
    images: list[bytes],
    run_graphs: Callable[[bytes], dict[str, Any]],
    size: str,
) -> None:
    raw = run_graphs(images[0])
    for task in TASKS:
        asked = {"images": images, "size": size}
        method = f"estimate_{task}"
        rest, rpc = service.over_rest(method, asked), service.over_grpc(method, asked)
        assert (rest.status, rpc.status) == ("200", "OK"), (rest.message, rpc.message)
        for index in range(2):
            name = f"{index}.{task}"
            np.testing.assert_array_equal(rest.arrays[name], rpc.arrays[name])
        wanted = make_map(task, raw[task], (SIDE, SIDE) if size == "image" else None)
        # Of metres up to 10, and of unit vectors.
        np.testing.assert_allclose(rest.arrays[f"0.{task}"], wanted, atol=1e-3)
        if size == "image":
            assert rest.arrays[f"1.{task}"].shape[:2] == SIZE[::-1]
        assert rest.arrays[f"0.{task}"].std() > 0.05


def test_the_open_inference_protocol_gives_them_too(
    service: "Service",
    bundled: ModelPackage,
    images: list[bytes],
    run_graphs: Callable[[bytes], dict[str, Any]],
) -> None:
    name = bundled.manifest.name
    raw = run_graphs(images[0])
    for index, image in enumerate(images):
        by_rest, by_grpc = (ask(service, name, image) for ask in (over_v2_rest, over_v2_grpc))
        asked = {"images": [image], "outputs": list(TASKS)}
        typed = service.over_rest("embed_images", asked).arrays
        for task in TASKS:
            np.testing.assert_array_equal(by_rest[task], by_grpc[task])
            np.testing.assert_array_equal(by_rest[task], typed[f"0.{task}"])
            if index == 0:
                np.testing.assert_allclose(by_rest[task], make_map(task, raw[task]), atol=1e-3)
