"""Requests one answer in each format from a service with a no-op model.

The package is the bundled one with B/14's width and size in its configuration, so that patches are
1024 x 768 float32. Nothing is decoded or computed; only transport remains.
"""

import http.client
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlencode

import grpc

from benchmarks.service_process import RunningService, wait_until_ready
from model.package import open_package
from service.grpc.generated import embed_pb2, image_pb2
from service.grpc.generated import open_inference_pb2 as pb
from service.grpc.generated.encoder_service_pb2_grpc import EncoderServiceStub
from service.grpc.generated.open_inference_pb2_grpc import GRPCInferenceServiceStub

SIDE: Final = 448
DIM: Final = 768
GRID: Final = SIDE // 14
NAME: Final = "noop"
LENGTH: Final = "Inference-Header-Content-Length"
UNLIMITED: Final = [("grpc.max_receive_message_length", -1)]
RPC_LIMIT_S: Final = 60.0

# Returns the body, or the raw message, for "patches" or for the small "cls1".
Fetch = Callable[[str], bytes]


@contextmanager
def noop_service() -> Iterator[RunningService]:
    """Run the service with a no-op model and one lane."""
    with tempfile.TemporaryDirectory() as folder:
        ports = Path(folder) / "ports.json"
        command = [sys.executable, "-m", "benchmarks.noop_service", "tipserve", str(ports)]
        command += [f"model={_write_package(Path(folder))}", "lanes=1"]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            yield wait_until_ready(process, ports)
        finally:
            process.terminate()
            process.wait(30)


def native_rest(service: RunningService, accept: str, **query: str) -> Fetch:
    """Native REST route, over a keep-alive connection."""
    connection = http.client.HTTPConnection("127.0.0.1", service.http_port)
    headers = {"Content-Type": "image/png", "Accept": accept}

    def fetch(output: str) -> bytes:
        options = urlencode({"outputs": output, "normalize": "false", **query})
        return _post(connection, f"/v1/images:embed?{options}", b"x", headers)

    return fetch


def v2_rest(service: RunningService) -> Fetch:
    """Binary tensors of the Open Inference Protocol, over a keep-alive connection."""
    connection = http.client.HTTPConnection("127.0.0.1", service.http_port)
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES"}

    def fetch(output: str) -> bytes:
        head = json.dumps(
            {
                "inputs": [tensor | {"parameters": {"binary_data_size": 5}}],
                "outputs": [{"name": _v2_name(output), "parameters": {"binary_data": True}}],
                "parameters": {"normalize": False},
            }
        ).encode()
        headers = {LENGTH: str(len(head))}
        return _post(connection, f"/v2/models/{NAME}/infer", head + b"\x01\0\0\0x", headers)

    return fetch


def v2_grpc(channel: grpc.Channel) -> Fetch:
    """Raw contents of the same protocol."""
    stub = GRPCInferenceServiceStub(channel)

    def fetch(output: str) -> bytes:
        request = pb.ModelInferRequest(raw_input_contents=[b"\x01\0\0\0x"])
        request.inputs.add(name="image", datatype="BYTES", shape=[1])
        request.outputs.add(name=_v2_name(output))
        request.parameters["normalize"].bool_param = False
        message: bytes = stub.ModelInfer(request, timeout=RPC_LIMIT_S).SerializeToString()
        return message

    return fetch


def native_grpc(channel: grpc.Channel) -> Fetch:
    """Our own contract."""
    stub = EncoderServiceStub(channel)
    outputs = {"patches": embed_pb2.IMAGE_OUTPUT_PATCHES, "cls1": embed_pb2.IMAGE_OUTPUT_CLS1}

    def fetch(output: str) -> bytes:
        request = embed_pb2.EmbedImagesRequest(
            images=[image_pb2.Image(encoded=b"x")], outputs=[outputs[output]], normalize=False
        )
        message: bytes = stub.EmbedImages(request, timeout=RPC_LIMIT_S).SerializeToString()
        return message

    return fetch


def _v2_name(output: str) -> str:
    return {"patches": "patch_embeddings"}.get(output, output)


def _post(
    connection: http.client.HTTPConnection, path: str, body: bytes, headers: dict[str, str]
) -> bytes:
    connection.request("POST", path, body, headers)
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise RuntimeError(content.decode())
    return content


def _write_package(folder: Path) -> Path:
    """Write the bundled package under another name and with other sizes."""
    target = folder / NAME
    shutil.copytree(open_package("bundled-student").path, target)
    path = target / "tipserve.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    sizes = {"native_size": SIDE, "max_size": SIDE, "shape_buckets": [[SIDE, SIDE]]}
    path.write_text(json.dumps({**manifest, **sizes, "name": NAME, "embed_dim": DIM}))
    return target
