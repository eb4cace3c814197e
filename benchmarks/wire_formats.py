"""Bytes and CPU time of one image's patch embeddings in each answer format.

Claims: nested JSON lists cost several times the bytes and the time of binary formats, which cost
the server at most 2 ms of CPU more than a memory copy. The answer is 1024 x 768 float32, as of B/14
at 448 px, from a no-op model.
Run: python -m benchmarks.wire_formats [--repeats 200]
"""

import argparse
import base64
import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Final

import grpc
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

from benchmarks.noop_service import noise
from benchmarks.service_process import RunningService
from benchmarks.wire_requests import (
    DIM,
    GRID,
    UNLIMITED,
    Fetch,
    native_grpc,
    native_rest,
    noop_service,
    v2_grpc,
    v2_rest,
)
from service.grpc.generated import embed_pb2
from service.grpc.generated import open_inference_pb2 as pb

WARM_UP: Final = 20
MOST_READS: Final = 20
OUTPUTS: Final = ("cls1", "patches")

Patches = NDArray[np.float32]


@dataclass(slots=True)
class Form:
    """One answer format: how to request and read it, and the cost of both.

    `server_ms` is the median CPU time that patches add to a request for CLS1.
    """

    name: str
    fetch: Fetch
    decode: Callable[[bytes], Patches]
    num_bytes: int = 0
    samples_ms: dict[str, list[float]] = field(default_factory=dict)
    client_ms: float = 0.0

    @property
    def server_ms(self) -> float:
        """Median CPU milliseconds that patches add on the server to CLS1 alone."""
        small_ms, whole_ms = (median(self.samples_ms[output]) for output in OUTPUTS)
        return whole_ms - small_ms


def find_patches(document: object) -> object:
    """Find the value of `patches` in a JSON answer."""
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
    """Read base64 with dtype and shape."""
    tensor = find_patches(json.loads(body))
    assert isinstance(tensor, dict)
    text = next(value for key, value in tensor.items() if key in {"data", "base64"})
    return np.frombuffer(base64.b64decode(text), "<f4")


def from_npy(body: bytes) -> Patches:
    """NumPy's own file."""
    patches: Patches = np.load(io.BytesIO(body))
    return patches


def from_safetensors(body: bytes) -> Patches:
    """Return the tensor whose name contains `patches`."""
    tensors = load(body)
    return next(value for name, value in tensors.items() if "patches" in name)


def from_message(body: bytes) -> Patches:
    """Our own answer."""
    tensor = embed_pb2.EmbedImagesResponse.FromString(body).embeddings[0].patches
    return np.frombuffer(tensor.data, "<f4")


def from_v2_message(body: bytes) -> Patches:
    """Read the answer of the Open Inference Protocol."""
    return np.frombuffer(pb.ModelInferResponse.FromString(body).raw_output_contents[0], "<f4")


def from_v2_body(body: bytes) -> Patches:
    """Read a JSON header followed by the tensor."""
    return np.frombuffer(body[len(body) - 4 * GRID**2 * DIM :], "<f4")


def all_forms(service: RunningService, channel: grpc.Channel) -> list[Form]:
    """Return every answer format."""
    json_type, tensors = "application/json", "application/octet-stream"
    lists = native_rest(service, json_type, encoding="list")
    packed = native_rest(service, json_type, encoding="base64")
    return [
        Form("npy, REST", native_rest(service, "application/x-npy"), from_npy),
        Form("safetensors, REST", native_rest(service, tensors), from_safetensors),
        Form("V2 binary, REST", v2_rest(service), from_v2_body),
        Form("tipserve.v1, gRPC", native_grpc(channel), from_message),
        Form("V2 raw, gRPC", v2_grpc(channel), from_v2_message),
        Form("JSON base64, REST", packed, from_json_base64),
        Form("JSON lists, REST", lists, from_json_list),
    ]


def measure(service: RunningService, forms: list[Form], repeats: int) -> None:
    """Request all formats in turn, so that other load affects all; then read each."""
    for turn in range(repeats + WARM_UP):
        for form in forms:
            for output in OUTPUTS:
                began_s = service.cpu_s()
                body = form.fetch(output)
                if turn >= WARM_UP:
                    spent_ms = 1000 * (service.cpu_s() - began_s)
                    form.samples_ms.setdefault(output, []).append(spent_ms)
            form.num_bytes = len(body)
    expected = noise((1, GRID**2, DIM)).ravel()
    for form in forms:
        body = form.fetch("patches")
        if not np.array_equal(form.decode(body).ravel(), expected):
            raise ValueError(f"{form.name} has other numbers")
        form.client_ms = 1000 * least_s(partial(form.decode, body))


def least_s(run: Callable[[], object]) -> float:
    """Minimum CPU seconds over several runs."""
    seconds = []
    for _ in range(MOST_READS):
        began_s = time.process_time()
        run()
        seconds.append(time.process_time() - began_s)
    return min(seconds)


def main() -> None:
    """Measure every format against one service."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=200, help="requests per format")
    repeats = parser.parse_args().repeats
    array = np.ones((GRID, GRID, DIM), np.float32)
    with (
        noop_service() as service,
        grpc.insecure_channel(f"127.0.0.1:{service.grpc_port}", UNLIMITED) as channel,
    ):
        forms = all_forms(service, channel)
        measure(service, forms, repeats)
    copy_ms = 1000 * least_s(array.tobytes)
    print(f"{array.nbytes} bytes of float32, {repeats} requests a form; a copy: {copy_ms:.2f} ms")
    print("| form | bytes | CPU ms of the server above the copy | CPU ms to read it |")
    print("| --- | --- | --- | --- |")
    for form in sorted(forms, key=lambda form: form.server_ms + form.client_ms):
        above_ms = form.server_ms - copy_ms
        print(f"| {form.name} | {form.num_bytes:,} | {above_ms:.2f} | {form.client_ms:.2f} |")


if __name__ == "__main__":
    main()
