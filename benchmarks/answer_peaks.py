"""Peak memory of a server for one request of a few kilobytes in every form of answer.

Claim: no small request takes the process above 512 MiB.
Run: python -m benchmarks.answer_peaks [--model bundled-student] [--input PART_OF_NAME] [-- FLAGS]
FLAGS are of the server, such as --precision=fp32.
"""

import argparse
import base64
import http.client
import io
import json
import math
import struct
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import parse_qsl

import grpc
from PIL import Image

from model.image_codec import DECODING_BYTES, WEBP_PIXEL_BYTES
from service.grpc.generated import (
    classify_pb2,
    dense_pb2,
    embed_pb2,
    encoder_service_pb2_grpc,
    features_pb2,
    image_pb2,
    open_inference_pb2,
    open_inference_pb2_grpc,
    segment_pb2,
    stream_pb2,
)
from tests.processes.service_process import RunningService, peak_mib, running_service

SIDE = 6324  # 40 megapixels, the default limit
# The largest images that the memory for decoding admits.
MAX_DECODING_BYTES = int(DECODING_BYTES * SIDE**2)
WEBP_SIDE = math.isqrt(MAX_DECODING_BYTES // WEBP_PIXEL_BYTES)
JPEG_SIDE = math.isqrt(int(MAX_DECODING_BYTES / (3 * 2 + 4 / 64))) // 8 * 8
# Sides of images whose answers in some form are just within the memory for answers.
ANSWER_SIDES = (5820, 4960, 4120, 3340, 2720, 1690)
NUM_IN_BATCH = 8
NUM_TEXTS = 1024
LIMIT_MIB = 512
MIB = 1024 * 1024
MANY_CLASSES = ",".join(f"c{number}" for number in range(256))
LISTS, BASE64 = "application/json", "application/json base64"
FORMS = (LISTS, BASE64, "application/x-npy", "application/octet-stream", "image/png")
ROUTES = (
    "/v1/images:segment?classes=dog,cat",
    "/v1/images:segment?classes=dog,cat&include_scores=true",
    "/v1/images:segment?classes=dog,cat&mode=slide",
    "/v1/images:segment?classes=dog,cat&format=overlay",
    "/v1/images:segment?classes=dog,cat&format=polygons",
    "/v1/images:segment?classes=dog,cat&format=rle_counts",
    "/v1/images:segment?classes=dog,cat&include_instances=true",
    f"/v1/images:segment?classes={MANY_CLASSES}",
    "/v1/images:features",
    "/v1/images:features?kind=groups",
    "/v1/images:features?kind=component",
    "/v1/images:embed?outputs=patches,values,cls1,cls2",
    "/v1/images:embed?outputs=depth,normals",
    "/v1/images:embed?outputs=patches,values&resolution=768",
    "/v1/images:classify?classes=dog,cat",
    "/v1/images:depth",
    "/v1/images:depth?format=colors",
    "/v1/images:normals",
)
# Outputs of the Open Inference Protocol whose names differ from ours.
INFER_NAMES = {"patches": "patch_embeddings", "values": "value_embeddings"}


@dataclass(frozen=True, slots=True)
class Model:
    """The served model, and its outputs for an image as the Open Inference Protocol names them."""

    name: str
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class File:
    """An image, and how often a request has it."""

    name: str
    media: str
    body: bytes
    num_images: int = 1


# A form of answer, and a call that gives the status and the length in bytes.
Question = tuple[str, Callable[[], tuple[str, int]]]


def inputs() -> Iterator[tuple[str, str, bytes]]:
    """Small files of large images: a name, a media type, and the file."""
    size = (SIDE, SIDE)
    unsampled = {"progressive": True, "subsampling": 0}
    images: list[tuple[str, str, Image.Image, dict[str, Any]]] = [
        ("largest WEBP", "webp", Image.new("RGBA", (WEBP_SIDE,) * 2), {"lossless": True}),
        ("largest progressive JPEG", "jpeg", Image.new("RGB", (JPEG_SIDE,) * 2), unsampled),
        ("1-bit PNG", "png", Image.new("1", size), {}),
        ("RGBA PNG", "png", Image.new("RGBA", size), {}),
        ("progressive JPEG", "jpeg", Image.new("L", size), {"progressive": True}),
        ("transparent GIF", "gif", Image.new("P", size), {"transparency": 0}),
    ]
    for side in ANSWER_SIDES:
        name = f"{round(side**2 / 1e6)} megapixels of 1-bit PNG"
        images.append((name, "png", Image.new("1", (side, side)), {}))
    for name, kind, image, options in images:
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        yield name, f"image/{kind}", stream.getvalue()
    tags = (
        (256, 4, 1), (257, 4, 1), (258, 3, 8), (259, 3, 5), (262, 3, 1), (277, 3, 1),
        (322, 4, 32_752), (323, 4, 65_520), (324, 4, 8), (325, 4, 4),
    )  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    head = b"II*\0" + struct.pack("<I", 12) + b"\x80\x00\x20\x20" + struct.pack("<H", len(tags))
    yield "TIFF with a huge tile", "image/tiff", head + entries + bytes(4)


def ask(port: int, path: str, body: bytes, headers: dict[str, str]) -> tuple[str, int]:
    """Status and length of an answer; it is read and dropped."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        length = 0
        while piece := answer.read(MIB):
            length += len(piece)
        return str(answer.status), length
    except OSError as error:
        return type(error).__name__, 0
    finally:
        connection.close()


def document(query: str, image: bytes, num_images: int) -> bytes:
    """The options of a query and copies of an image as JSON."""
    fields: dict[str, Any] = {"images": [base64.b64encode(image).decode()] * num_images}
    for name, value in parse_qsl(query):
        is_text = value != "true" and not value.isdigit()
        fields[name] = value if is_text else json.loads(value)
        if name in {"classes", "outputs"}:
            fields[name] = value.split(",")
    return json.dumps(fields).encode()


def over_rest(port: int, model: Model, file: File) -> Iterator[Question]:
    """Every form of every answer over REST about one file."""
    for route in ROUTES:
        path, _, query = route.partition("?")
        for form in FORMS:
            accept, _, encoding = form.partition(" ")
            given = f"{query}&encoding={encoding}" if encoding else query
            headers = {"Accept": accept, "Content-Type": file.media}
            target, body = f"{path}?{given}", file.body
            if file.num_images > 1:
                target, body = path, document(given, file.body, file.num_images)
                headers["Content-Type"] = "application/json"
            yield f"{route[:70]} {form}", partial(ask, port, target, body, headers)
    encoded = [base64.b64encode(file.body).decode()] * file.num_images
    tensor = {"name": "image", "shape": [len(encoded)], "datatype": "BYTES", "data": encoded}
    infer: dict[str, Any] = {"inputs": [tensor], "outputs": [{"name": n} for n in model.outputs]}
    urls = [f"data:{file.media};base64,{image}" for image in encoded]
    for name, path, fields in (
        ("infer, JSON", f"/v2/models/{model.name}/infer", infer),
        (
            "infer, binary",
            f"/v2/models/{model.name}/infer",
            infer | {"parameters": {"binary_data_output": True}},
        ),
        ("OpenAI's embeddings", "/v1/embeddings", {"model": model.name, "input": urls}),
    ):
        sent, headers = json.dumps(fields).encode(), {"Content-Type": "application/json"}
        yield name, partial(ask, port, path, sent, headers)


def rpcs(file: File) -> dict[str, tuple[str, Any]]:
    """The RPC and its request by name, for each kind of answer."""
    images = [image_pb2.Image(encoded=file.body)] * file.num_images
    classes = [segment_pb2.SegmentClass(name=name) for name in ("dog", "cat")]
    slide = segment_pb2.SEGMENT_MODE_SLIDE
    options: tuple[dict[str, Any], ...] = (
        {},
        {"include_scores": True},
        {"mode": slide},
        {"include_instances": True},
    )
    found: dict[str, tuple[str, Any]] = {}
    for given in options:
        request = segment_pb2.SegmentImagesRequest(images=images, classes=classes, **given)
        found[f"gRPC segment {given}"] = ("SegmentImages", request)
    for kind in ("COLORS", "COMPONENT", "GROUPS"):
        features = features_pb2.VisualizeFeaturesRequest(images=images, kind=f"FEATURE_KIND_{kind}")
        found[f"gRPC {kind.lower()}"] = ("VisualizeFeatures", features)
    for outputs in (("PATCHES", "VALUES"), ("DEPTH", "NORMALS")):
        wanted = [f"IMAGE_OUTPUT_{output}" for output in outputs]
        embed = embed_pb2.EmbedImagesRequest(images=images, outputs=wanted)
        found[f"gRPC embed {outputs}"] = ("EmbedImages", embed)
    classify = classify_pb2.ClassifyImagesRequest(images=images, classes=classes)
    found["gRPC classify"] = ("ClassifyImages", classify)
    found["gRPC depth"] = ("EstimateDepth", dense_pb2.EstimateDepthRequest(images=images))
    found["gRPC normals"] = ("EstimateNormals", dense_pb2.EstimateNormalsRequest(images=images))
    return found


def streams(model: Model, file: File) -> dict[str, tuple[str, Any]]:
    """The RPC and the request of each stream, with one image."""
    images = [image_pb2.Image(encoded=file.body)]
    classes = [segment_pb2.SegmentClass(name="dog")]
    segment = segment_pb2.SegmentImagesRequest(images=images, classes=classes)
    infer = open_inference_pb2.ModelInferRequest()
    tensor = infer.inputs.add(name="image", shape=[1], datatype="BYTES")
    tensor.contents.bytes_contents.append(file.body)
    for name in model.outputs:
        infer.outputs.add(name=name)
    return {
        "gRPC Stream, segment": ("Stream", stream_pb2.StreamRequest(segment_images=segment)),
        "gRPC ModelInfer": ("ModelInfer", infer),
        "gRPC ModelStreamInfer": ("ModelStreamInfer", infer),
    }


def call(port: int, method: str, request: Any) -> tuple[str, int]:
    """Status and length of the answer to one RPC, or of all answers to eight on a stream."""
    options = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        ours = encoder_service_pb2_grpc.EncoderServiceStub(channel)
        theirs = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        rpc = getattr(theirs if method.startswith("Model") else ours, method)
        try:
            if method in {"Stream", "ModelStreamInfer"}:
                answers = rpc(iter([request] * NUM_IN_BATCH), timeout=120)
                return "OK", sum(answer.ByteSize() for answer in answers)
            return "OK", rpc(request, timeout=120).ByteSize()
        except grpc.RpcError as error:
            return error.code().name, 0


def about_texts(port: int, model: Model) -> Iterator[Question]:
    """As many texts as a request may have, of one letter or two each."""
    texts = [f"{number:x}" for number in range(NUM_TEXTS)]
    for form in FORMS:
        accept, _, encoding = form.partition(" ")
        fields = {"texts": texts} | ({"encoding": encoding} if encoding else {})
        headers = {"Accept": accept, "Content-Type": "application/json"}
        body = json.dumps(fields).encode()
        yield f"texts {form}", partial(ask, port, "/v1/texts:embed", body, headers)
    body = json.dumps({"model": model.name, "input": texts}).encode()
    headers = {"Content-Type": "application/json"}
    yield "OpenAI's embeddings", partial(ask, port, "/v1/embeddings", body, headers)


def questions(service: RunningService, part_of_name: str) -> Iterator[tuple[str, Question]]:
    """About every file, then about several images at once, then about texts."""
    with urllib.request.urlopen(f"{service.http_url}/v1/models") as answer:
        card = json.load(answer)["data"][0]
    outputs = tuple(INFER_NAMES.get(name, name) for name in card["outputs"] if name != "text")
    model = Model(card["id"], outputs)
    files = [File(*file) for file in inputs()]
    stream = io.BytesIO()
    Image.new("1", (round(SIDE / math.sqrt(NUM_IN_BATCH)),) * 2).save(stream, "PNG")
    files.append(File("8 images of 5 megapixels", "image/png", stream.getvalue(), NUM_IN_BATCH))
    for file in files:
        if part_of_name in file.name:
            for question in over_rest(service.http_port, model, file):
                yield file.name, question
            for name, (method, request) in (rpcs(file) | streams(model, file)).items():
                yield file.name, (name, partial(call, service.grpc_port, method, request))
    for question in about_texts(service.http_port, model):
        yield "1,024 texts", question


def main() -> None:
    """Ask for each form of each answer, and print the peaks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", default="", help="part of an input's name; default: all")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("service_flags", nargs="*", help="after --: flags of the server")
    options = parser.parse_args()
    peaks: list[float] = []
    with running_service(f"--model={options.model}", *options.service_flags) as service:
        for file, (form, question) in questions(service, options.input):
            peak_mib(service.pid, reset=True)
            status, length = question()
            if status in {"400", "406"}:
                continue  # there is no such form
            peaks.append(peak_mib(service.pid))
            size = f"{length / 1e6:.1f} MB"
            print(f"{file}: {form}: {status} {size}, peak {peaks[-1]:.0f} MiB", flush=True)
    print(f"\n{len(peaks)} forms, highest peak: {max(peaks):.0f} MiB (claim: at most {LIMIT_MIB})")


if __name__ == "__main__":
    main()
