"""What it costs to send one picture's patches as the Open Inference Protocol's binary tensors.

Claim: over REST and over gRPC, an answer of 1024 x 768 float32 (B/14 at 448 px) costs the server at
most 2 ms of CPU more than a copy of its memory, and has its bytes and a short head.
The model does nothing, and embeddings are not normalised, so that what differs from a request for
the small CLS1 is the sending. Run: python -m benchmarks.tensor_forms [--repeats 300]
"""

import argparse
import http.client
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import grpc
import numpy as np

from benchmarks.service_process import RunningService, wait_until_ready
from model.package import open_package
from service.grpc.generated import embed_pb2, image_pb2
from service.grpc.generated import open_inference_pb2 as pb
from service.grpc.generated.encoder_service_pb2_grpc import EncoderServiceStub
from service.grpc.generated.open_inference_pb2_grpc import GRPCInferenceServiceStub

SIDE, DIM, NAME = 448, 768, "noop"
LENGTH = "Inference-Header-Content-Length"
UNLIMITED = [("grpc.max_receive_message_length", -1)]

Fetch = Callable[[str], int]


def write_package(folder: Path) -> Path:
    """The bundled package, said to be of B/14's width and size; nothing computes it."""
    target = folder / NAME
    shutil.copytree(open_package("bundled").path, target)
    path = target / "tipserve.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    sizes = {"native_size": SIDE, "max_size": SIDE, "shape_buckets": [[SIDE, SIDE]]}
    path.write_text(json.dumps({**manifest, **sizes, "name": NAME, "embed_dim": DIM}))
    return target


@contextmanager
def noop_service() -> Iterator[RunningService]:
    """The service around a model that does nothing, with one lane."""
    with tempfile.TemporaryDirectory() as folder:
        ports = Path(folder) / "ports.json"
        command = [sys.executable, "-m", "benchmarks.noop_service", "tipserve", str(ports)]
        command += [f"model={write_package(Path(folder))}", "lanes=1"]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            yield wait_until_ready(process, ports)
        finally:
            process.terminate()
            process.wait(30)


def v2_rest(service: RunningService) -> Fetch:
    """Binary tensors over one kept connection."""
    connection = http.client.HTTPConnection("127.0.0.1", service.http_port)
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES"}

    def fetch(output: str) -> int:
        head = json.dumps(
            {
                "inputs": [tensor | {"parameters": {"binary_data_size": 5}}],
                "outputs": [{"name": output, "parameters": {"binary_data": True}}],
                "parameters": {"normalize": False},
            }
        ).encode()
        body = head + b"\x01\0\0\0x"
        connection.request("POST", f"/v2/models/{NAME}/infer", body, {LENGTH: str(len(head))})
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise RuntimeError(content.decode())
        return len(content)

    return fetch


def v2_grpc(channel: grpc.Channel) -> Fetch:
    """Raw contents over one channel."""
    stub = GRPCInferenceServiceStub(channel)

    def fetch(output: str) -> int:
        request = pb.ModelInferRequest(raw_input_contents=[b"\x01\0\0\0x"])
        request.inputs.add(name="image", datatype="BYTES", shape=[1])
        request.outputs.add(name=output)
        request.parameters["normalize"].bool_param = False
        return int(stub.ModelInfer(request).ByteSize())

    return fetch


def native_grpc(channel: grpc.Channel) -> Fetch:
    """Our own contract, to compare with."""
    stub = EncoderServiceStub(channel)
    outputs = {
        "patch_embeddings": embed_pb2.IMAGE_OUTPUT_PATCHES,
        "cls1": embed_pb2.IMAGE_OUTPUT_CLS1,
    }

    def fetch(output: str) -> int:
        images = [image_pb2.Image(encoded=b"x")]
        request = embed_pb2.EmbedImagesRequest(
            images=images, outputs=[outputs[output]], normalize=False
        )
        return int(stub.EmbedImages(request).ByteSize())

    return fetch


def copy_ms(repeats: int) -> float:
    """CPU milliseconds that a copy of such an array into new memory takes."""
    array = np.ones((SIDE // 14, SIDE // 14, DIM), np.float32)
    samples = []
    for _ in range(repeats):
        began = time.process_time()
        array.tobytes()
        samples.append(1000 * (time.process_time() - began))
    return median(samples)


def main() -> None:
    """All forms in turn, so that a busy neighbour meets all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=300)
    repeats = parser.parse_args().repeats
    with (
        noop_service() as service,
        grpc.insecure_channel(f"127.0.0.1:{service.grpc_port}", UNLIMITED) as channel,
    ):
        forms = {
            "V2 binary, REST": v2_rest(service),
            "V2 raw, gRPC": v2_grpc(channel),
            "native gRPC": native_grpc(channel),
        }
        costs: dict[tuple[str, str], list[float]] = {}
        sizes: dict[str, int] = {}
        for turn in range(repeats + 20):
            for name, fetch in forms.items():
                for output in ("cls1", "patch_embeddings"):
                    began = service.cpu_s()
                    sizes[name] = fetch(output)
                    if turn >= 20:
                        costs.setdefault((name, output), []).append(service.cpu_s() - began)
        raw_ms = copy_ms(repeats)
    num_bytes = 4 * (SIDE // 14) ** 2 * DIM
    print(f"one answer of {num_bytes} bytes of float32, {repeats} requests a form, medians")
    print(f"a copy of its memory: {raw_ms:.2f} ms of CPU")
    for name in forms:
        whole_ms, small_ms = (
            1000 * median(costs[name, output]) for output in ("patch_embeddings", "cls1")
        )
        extra_ms = whole_ms - small_ms - raw_ms
        print(
            f"{name:16} {sizes[name] - num_bytes:5d} bytes beside the tensor  "
            f"{whole_ms - small_ms:5.2f} ms more than CLS1 alone ({small_ms:.2f} ms), "
            f"{extra_ms:5.2f} ms above the copy (claim: at most 2)"
        )


if __name__ == "__main__":
    main()
