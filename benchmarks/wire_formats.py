"""Bytes and CPU time of patch embeddings in each form that the service can answer in.

Claim: nested JSON lists cost several times the bytes and the time of binary forms.
Run: python -m benchmarks.wire_formats [--model bundled] [--resolution 224]
"""

import argparse
import base64
import io
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from urllib.parse import urlencode

import grpc
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load

from benchmarks.service_process import RunningService, running_service
from service.grpc.generated import embed_pb2, encoder_service_pb2_grpc, image_pb2

RPC_LIMIT_S = 60.0
NPY = "npy"

Patches = NDArray[np.float32]
Decode = Callable[[bytes], Patches]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One way to receive patches: how to ask, for them or for the small CLS1, and how to read."""

    name: str
    fetch: Callable[[str], bytes]
    decode: Decode


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one form costs. Server time is what patches add to a request for CLS1, in the median."""

    name: str
    num_bytes: int
    server_ms: float
    client_ms: float


def plain_png() -> bytes:
    """A picture that is quickly read, so that the answer is what costs."""
    pixels = np.random.default_rng(0).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((224, 224)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def rest_fetch(
    service: RunningService, picture: bytes, resolution: int | None, *, accept: str, **query: str
) -> Callable[[str], bytes]:
    """A function that asks for one output over REST and gives the body."""

    def fetch(output: str) -> bytes:
        options = {"outputs": output, **query}
        if resolution is not None:
            options["resolution"] = str(resolution)
        url = f"{service.http_url}/v1/images:embed?{urlencode(options)}"
        headers = {"Content-Type": "image/png", "Accept": accept}
        request = urllib.request.Request(url, data=picture, headers=headers)
        try:
            with urllib.request.urlopen(request) as answer:
                body = answer.read()
        except urllib.error.HTTPError as error:
            raise ValueError(f"the service refused: {error.read().decode()}") from error
        assert isinstance(body, bytes)
        return body

    return fetch


def grpc_fetch(
    stub: encoder_service_pb2_grpc.EncoderServiceStub, picture: bytes, resolution: int | None
) -> Callable[[str], bytes]:
    """A function that asks for one output over gRPC and gives the message as it came."""
    outputs = {"patches": embed_pb2.IMAGE_OUTPUT_PATCHES, "cls1": embed_pb2.IMAGE_OUTPUT_CLS1}

    def fetch(output: str) -> bytes:
        request = embed_pb2.EmbedImagesRequest(
            images=[image_pb2.Image(encoded=picture)], outputs=[outputs[output]]
        )
        if resolution is not None:
            request.resolution = resolution
        answer = stub.EmbedImages(request, timeout=RPC_LIMIT_S)
        data = answer.SerializeToString()
        assert isinstance(data, bytes)
        return data

    return fetch


def find_patches(document: object) -> object:
    """The value under `patches`, wherever the JSON answer has it."""
    if isinstance(document, dict):
        if "patches" in document:
            return document["patches"]
        document = list(document.values())
    if isinstance(document, list):
        found = (find_patches(item) for item in document)
        return next((value for value in found if value is not None), None)
    return None


def from_json_list(body: bytes) -> Patches:
    """Nested lists."""
    return np.asarray(find_patches(json.loads(body)), np.float32)


def from_json_base64(body: bytes) -> Patches:
    """Base64 with dtype and shape beside it."""
    tensor = find_patches(json.loads(body))
    assert isinstance(tensor, dict)
    text = next(value for key, value in tensor.items() if key in {"data", "base64"})
    return np.frombuffer(base64.b64decode(text), "<f4").reshape(tensor["shape"])


def from_npy(body: bytes) -> Patches:
    """NumPy's own file."""
    patches: Patches = np.load(io.BytesIO(body))
    return patches


def from_safetensors(body: bytes) -> Patches:
    """The one tensor of the file whose name says patches."""
    tensors = load(body)
    return next(value for name, value in tensors.items() if "patches" in name)


def from_message(body: bytes) -> Patches:
    """A protobuf answer."""
    tensor = embed_pb2.EmbedImagesResponse.FromString(body).embeddings[0].patches
    return np.frombuffer(tensor.data, "<f4").reshape(tuple(tensor.shape))


def measure(service: RunningService, form: Form, reference: Patches, repeats: int) -> Row:
    """Check that the form gives the same numbers, then what it costs on both sides."""
    body = form.fetch("patches")
    np.testing.assert_allclose(
        form.decode(body).reshape(reference.shape), reference, rtol=0, atol=1e-6
    )
    cost_ms: dict[str, list[float]] = {"cls1": [], "patches": []}
    for _ in range(repeats):
        for output, samples in cost_ms.items():
            samples.append(cpu_ms(service, form, output))
    started = time.process_time()
    for _ in range(repeats):
        form.decode(body)
    client_ms = 1000 * (time.process_time() - started) / repeats
    return Row(
        name=form.name,
        num_bytes=len(body),
        server_ms=median(cost_ms["patches"]) - median(cost_ms["cls1"]),
        client_ms=client_ms,
    )


def cpu_ms(service: RunningService, form: Form, output: str) -> float:
    """CPU milliseconds of the service for one request."""
    before = service.cpu_s()
    form.fetch(output)
    return 1000 * (service.cpu_s() - before)


def print_table(rows: list[Row]) -> None:
    """One line for each form, with ratios to npy."""
    base = next(row for row in rows if row.name == NPY)
    print(f"{'form':<12} {'bytes':>10} {'ratio':>6} {'server CPU ms':>14} {'client CPU ms':>14}")
    for row in rows:
        print(
            f"{row.name:<12} {row.num_bytes:10d} {row.num_bytes / base.num_bytes:6.2f} "
            f"{row.server_ms:14.2f} {row.client_ms:14.3f}"
        )
    worst = max(rows, key=lambda row: row.num_bytes)
    extra_ms = (worst.server_ms + worst.client_ms) - (base.server_ms + base.client_ms)
    print(
        f"ratio: {worst.name} has {worst.num_bytes / base.num_bytes:.1f} times the bytes of "
        f"{NPY} and costs {extra_ms:.1f} ms of CPU more a picture, both sides together"
    )


def all_forms(
    service: RunningService,
    stub: encoder_service_pb2_grpc.EncoderServiceStub,
    resolution: int | None,
) -> list[Form]:
    """Every form of the answer."""
    picture = plain_png()

    def rest(accept: str, **query: str) -> Callable[[str], bytes]:
        return rest_fetch(service, picture, resolution, accept=accept, **query)

    json_type, tensors = "application/json", "application/octet-stream"
    lists, packed = rest(json_type, encoding="list"), rest(json_type, encoding="base64")
    return [
        Form(name=NPY, fetch=rest("application/x-npy"), decode=from_npy),
        Form(name="safetensors", fetch=rest(tensors), decode=from_safetensors),
        Form(name="gRPC", fetch=grpc_fetch(stub, picture, resolution), decode=from_message),
        Form(name="JSON base64", fetch=packed, decode=from_json_base64),
        Form(name="JSON lists", fetch=lists, decode=from_json_list),
    ]


def main() -> None:
    """Measure every form against one service."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="bundled", help="model package: bundled, or a folder")
    parser.add_argument(
        "--resolution", type=int, help="pixels; the model's native size if left out"
    )
    parser.add_argument("--repeats", type=int, default=200, help="requests for each form")
    options = parser.parse_args()
    with (
        running_service(f"--model={options.model}") as service,
        grpc.insecure_channel(f"127.0.0.1:{service.grpc_port}") as channel,
    ):
        stub = encoder_service_pb2_grpc.EncoderServiceStub(channel)
        forms = all_forms(service, stub, options.resolution)
        reference = forms[0].decode(forms[0].fetch("patches"))
        rows = [measure(service, form, reference, options.repeats) for form in forms]
    print(
        f"patches {list(reference.shape)} float32, model {options.model}, "
        f"{options.repeats} requests a form, one after the other"
    )
    print_table(rows)


if __name__ == "__main__":
    main()
