"""Peak memory of a server for one request of a few kilobytes in every form of answer.

Claim: no request that a stranger makes small takes the process above 512 MiB.
Run: python -m benchmarks.answer_peaks [--model bundled-student] [--repeats 30] [-- FLAGS]
`--repeats` asks the ten highest forms again, in random order, on the same server. FLAGS are of the
server, such as --precision=fp32.
"""

import argparse
import base64
import http.client
import io
import json
import math
import random
import resource
import statistics
import struct
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import grpc
import numpy as np
from PIL import Image

from benchmarks.service_process import RunningService, running_service
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

SIDE = 6324  # 40 megapixels, the default limit
# The largest that the memory for decoding admits, by what a pixel takes: WebP; a progressive JPEG
# without subsampling, beside an eighth of each side; a TIFF of one strip, or one that is turned.
MAX_DECODING_BYTES = int(DECODING_BYTES * SIDE**2)
WEBP_SIDE = math.isqrt(MAX_DECODING_BYTES // WEBP_PIXEL_BYTES)
JPEG_SIDE = math.isqrt(int(MAX_DECODING_BYTES / (3 * 2 + 4 / 64))) // 8 * 8
TIFF_SIDE = math.isqrt(MAX_DECODING_BYTES // (4 + 4))
# Sides of images whose answers in some form are just within `max_answer_bytes`, or the memory for
# answers: masks, scores, components and colours as arrays, base64, lists, PNG and over gRPC.
ANSWER_SIDES = (
    *(5820, 5790, 5310, 4960, 4720, 4630, 4120, 3510),
    *(3340, 3250, 2940, 2790, 2720, 2380, 2020, 1690),
)
NUM_IN_BATCH = 8
NUM_REPEATED = 10
NUM_TEXTS, TEXTS = 1024, "texts"
ROUTE_HEADER = "X-Amzn-SageMaker-Custom-Attributes"
REFUSED = {"WEBP", "TIFF with a huge tile"}
LIMIT_MIB = 512
MIB = 1024 * 1024
MANY_CLASSES = ",".join(f"c{number}" for number in range(256))
LISTS, BASE64 = "application/json", "application/json base64"
FORMS = (LISTS, BASE64, "application/x-npy", "application/octet-stream", "image/png")
ROUTES = {
    "segment": "/v1/images:segment?classes=dog,cat",
    "segment, scores": "/v1/images:segment?classes=dog,cat&include_scores=true",
    "segment, slide": "/v1/images:segment?classes=dog,cat&mode=slide",
    "segment, overlay": "/v1/images:segment?classes=dog,cat&format=overlay",
    "segment, polygons": "/v1/images:segment?classes=dog,cat&format=polygons",
    "segment, runs": "/v1/images:segment?classes=dog,cat&format=rle_counts",
    "segment, labels": "/v1/images:segment?classes=dog,cat&format=labels",
    "segment, instances": "/v1/images:segment?classes=dog,cat&include_instances=true",
    "segment, 256 classes": f"/v1/images:segment?classes={MANY_CLASSES}",
    "features": "/v1/images:features",
    "features, groups": "/v1/images:features?kind=groups",
    "features, component": "/v1/images:features?kind=component",
    "embed": "/v1/images:embed?outputs=patches,values,cls1,cls2",
    "embed, maps": "/v1/images:embed?outputs=depth,normals",
    "embed, float16": "/v1/images:embed?outputs=patches,values&dtype=float16",
    "embed, largest size": "/v1/images:embed?outputs=patches,values&resolution=768",
    "classify": "/v1/images:classify?classes=dog,cat",
    "depth": "/v1/images:depth",
    "depth, colors": "/v1/images:depth?format=colors",
    "depth, largest size": "/v1/images:depth?resolution=768",
    "normals": "/v1/images:normals",
}
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


@dataclass(frozen=True, slots=True)
class Question:
    """One request: the file, the form of its answer, and how it is asked."""

    file: str
    form: str
    # Gives the status of the answer, and its length in bytes.
    ask: Callable[[], tuple[str, int]]


def images() -> Iterator[tuple[str, Image.Image, dict[str, Any]]]:
    """Images whose files are small: a name, the image, and options of its format."""
    size, webp_size = (SIDE, SIDE), (WEBP_SIDE, WEBP_SIDE)
    jpeg_size, tiff_size = (JPEG_SIDE, JPEG_SIDE), (TIFF_SIDE, TIFF_SIDE)
    unsampled = {"progressive": True, "subsampling": 0}
    yield "largest WEBP", Image.new("RGBA", webp_size), {"lossless": True}
    yield "largest progressive JPEG", Image.new("RGB", jpeg_size), unsampled
    one_strip = {"compression": "tiff_lzw", "strip_size": 2**30}
    yield "largest TIFF", Image.new("RGBA", tiff_size), one_strip
    yield "1-bit PNG", Image.new("1", size), {}
    for side in ANSWER_SIDES:
        yield f"{round(side**2 / 1e6)} megapixels of 1-bit PNG", Image.new("1", (side, side)), {}
    yield "palette PNG with transparency", Image.new("P", size), {"transparency": 0}
    yield "RGBA PNG", Image.new("RGBA", size), {}
    yield "grey JPEG", Image.new("L", size), {}
    yield "progressive JPEG", Image.new("L", size), {"progressive": True}
    yield "transparent GIF", Image.new("P", size), {"transparency": 0}
    yield "WEBP", Image.new("RGBA", size), {"lossless": True}


def inputs() -> Iterator[tuple[str, str, bytes]]:
    """Small files of large images: a name, a media type, and the file."""
    for name, image, options in images():
        stream = io.BytesIO()
        kind = name.rpartition(" ")[2] if name != "palette PNG with transparency" else "PNG"
        image.save(stream, kind, **options)
        yield name, f"image/{kind.lower()}", stream.getvalue()
    tags = (
        (256, 4, 1), (257, 4, 1), (258, 3, 8), (259, 3, 5), (262, 3, 1), (277, 3, 1),
        (322, 4, 32_752), (323, 4, 65_520), (324, 4, 8), (325, 4, 4),
    )  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    head = b"II*\0" + struct.pack("<I", 12) + b"\x80\x00\x20\x20" + struct.pack("<H", len(tags))
    yield "TIFF with a huge tile", "image/tiff", head + entries + bytes(4)


def peak_mib(pid: int, *, reset: bool = False) -> float:
    """Peak resident memory of a process; `reset` starts from what it holds now."""
    if reset:
        Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


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


def rest_request(route: str, form: str, file: File) -> tuple[str, bytes, dict[str, str]]:
    """Path, body and headers of one request over our own routes."""
    accept, _, encoding = form.partition(" ")
    path, _, query = route.partition("?")
    if encoding:
        query = f"{query}&encoding={encoding}".removeprefix("&")
    if file.num_images == 1:
        return f"{path}?{query}", file.body, {"Accept": accept, "Content-Type": file.media}
    headers = {"Accept": accept, "Content-Type": "application/json"}
    return path, document(query, file.body, file.num_images), headers


def dialect_questions(port: int, model: Model, file: File) -> Iterator[Question]:
    """The same image over the routes of other servers."""
    encoded = [base64.b64encode(file.body).decode()] * file.num_images
    tensor = {"name": "image", "shape": [len(encoded)], "datatype": "BYTES", "data": encoded}
    asked: dict[str, Any] = {"inputs": [tensor]}
    asked["outputs"] = [{"name": name} for name in model.outputs]
    infer, json_headers = f"/v2/models/{model.name}/infer", {"Content-Type": "application/json"}
    binary = asked | {"parameters": {"binary_data_output": True}}
    urls = [f"data:{file.media};base64,{image}" for image in encoded]
    embeddings = {"model": model.name, "input": urls}
    instances = {"instances": [{"b64": image} for image in encoded]}
    depth = {ROUTE_HEADER: "/v1/images:depth"} | json_headers
    for name, path, headers, fields in (
        ("infer, JSON", infer, json_headers, asked),
        ("infer, binary", infer, json_headers, binary),
        ("OpenAI's embeddings", "/v1/embeddings", json_headers, embeddings),
        ("Vertex AI's instances", "/invocations", json_headers, instances),
        ("SageMaker's depth", "/invocations", depth, {"images": encoded}),
    ):
        sent = json.dumps(fields).encode()
        yield Question(file.name, f"{name:47}", partial(ask, port, path, sent, headers))


def rpcs(file: File) -> dict[str, tuple[str, Any]]:
    """The RPC and its request by name, for each kind of answer."""
    images = [image_pb2.Image(encoded=file.body)] * file.num_images
    classes = [segment_pb2.SegmentClass(name=name) for name in ("dog", "cat")]
    segment, features = segment_pb2.SegmentImagesRequest, features_pb2.VisualizeFeaturesRequest
    slide = segment_pb2.SEGMENT_MODE_SLIDE
    names: list[tuple[str, dict[str, Any]]] = [
        ("segment", {}),
        ("scores", {"include_scores": True}),
        ("slide", {"mode": slide}),
        ("instances", {"include_instances": True}),
    ]
    found: dict[str, tuple[str, Any]] = {
        f"gRPC {name}": ("SegmentImages", segment(images=images, classes=classes, **fields))
        for name, fields in names
    }
    for kind in ("COLORS", "COMPONENT", "GROUPS"):
        request = features(images=images, kind=f"FEATURE_KIND_{kind}")
        found[f"gRPC {kind.lower()}"] = ("VisualizeFeatures", request)
    for name, outputs in (("embed", ("PATCHES", "VALUES")), ("maps", ("DEPTH", "NORMALS"))):
        wanted = [f"IMAGE_OUTPUT_{output}" for output in outputs]
        embed = embed_pb2.EmbedImagesRequest(images=images, outputs=wanted)
        found[f"gRPC embed, {name}"] = ("EmbedImages", embed)
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
    normals = dense_pb2.EstimateNormalsRequest(images=images)
    infer = open_inference_pb2.ModelInferRequest()
    tensor = infer.inputs.add(name="image", shape=[1], datatype="BYTES")
    tensor.contents.bytes_contents.append(file.body)
    for name in model.outputs:
        infer.outputs.add(name=name)
    return {
        "gRPC Stream, segment": ("Stream", stream_pb2.StreamRequest(segment_images=segment)),
        "gRPC Stream, normals": ("Stream", stream_pb2.StreamRequest(estimate_normals=normals)),
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


def text_questions(service: RunningService, model: Model) -> Iterator[Question]:
    """As many texts as a request may have, of one letter or two each."""
    texts = [f"{number:x}" for number in range(NUM_TEXTS)]
    port = service.http_port
    tensor = {"name": "text", "shape": [NUM_TEXTS], "datatype": "BYTES", "data": texts}
    embed = {"texts": texts, "templates": "none"}
    for form in FORMS:
        accept, _, encoding = form.partition(" ")
        fields: dict[str, Any] = embed | ({"encoding": encoding} if encoding else {})
        headers = {"Accept": accept, "Content-Type": "application/json"}
        asked = partial(ask, port, "/v1/texts:embed", json.dumps(fields).encode(), headers)
        yield Question(TEXTS, f"{'texts':20} {form:26}", asked)
    for name, path, fields in (
        ("infer, JSON", f"/v2/models/{model.name}/infer", {"inputs": [tensor]}),
        ("OpenAI's embeddings", "/v1/embeddings", {"model": model.name, "input": texts}),
    ):
        headers = {"Content-Type": "application/json"}
        asked = partial(ask, port, path, json.dumps(fields).encode(), headers)
        yield Question(TEXTS, f"{name:47}", asked)
    request = embed_pb2.EmbedTextsRequest(texts=texts)
    asked = partial(call, service.grpc_port, "EmbedTexts", request)
    yield Question(TEXTS, f"{'gRPC texts':47}", asked)


def questions(service: RunningService, model: Model, file: File) -> Iterator[Question]:
    """Every form of every answer about one file."""
    port = service.http_port
    for name, route in ROUTES.items():
        for form in FORMS:
            asked = partial(ask, port, *rest_request(route, form, file))
            yield Question(file.name, f"{name:20} {form:26}", asked)
    yield from dialect_questions(port, model, file)
    for name, (method, request) in (rpcs(file) | streams(model, file)).items():
        yield Question(file.name, f"{name:47}", partial(call, service.grpc_port, method, request))
    if file.num_images == 1:
        several = replace(file, num_images=NUM_IN_BATCH)
        for name in ("embed", "classify"):
            asked = partial(ask, port, *rest_request(ROUTES[name], LISTS, several))
            yield Question(file.name, f"{name:20} {f'{NUM_IN_BATCH} images':26}", asked)


def peak_of(service: RunningService, question: Question) -> tuple[str, int, float]:
    """Ask once: status and length of the answer, and the peak in MiB."""
    peak_mib(service.pid, reset=True)
    status, length = question.ask()
    return status, length, peak_mib(service.pid)


def every_question(service: RunningService) -> Iterator[Question]:
    """About every file, then about several images at once, then about texts."""
    with urllib.request.urlopen(f"{service.http_url}/v1/models") as answer:
        card = json.load(answer)["data"][0]
    outputs = tuple(INFER_NAMES.get(name, name) for name in card["outputs"] if name != "text")
    model = Model(card["id"], outputs)
    for name, media, body in inputs():
        yield from questions(service, model, File(name, media, body))
    for side in ANSWER_SIDES[::2]:
        stream = io.BytesIO()
        Image.new("1", (round(side / math.sqrt(NUM_IN_BATCH)),) * 2).save(stream, "PNG")
        name = f"{NUM_IN_BATCH} times {side**2 / NUM_IN_BATCH / 1e6:.1f} megapixels of 1-bit PNG"
        file = File(name, "image/png", stream.getvalue(), NUM_IN_BATCH)
        yield from questions(service, model, file)
    yield from text_questions(service, model)


def every_form(service: RunningService, part_of_name: str) -> list[tuple[float, Question]]:
    """Ask for each form of each answer, print the peaks, and give them in MiB."""
    found = []
    file = ""
    for question in every_question(service):
        if part_of_name not in question.file:
            continue
        if question.file != file:
            file = question.file
            print(f"\n{file}")
        status, length, peak = peak_of(service, question)
        if status in {"400", "406", "422"} and file not in REFUSED:
            continue  # there is no such form
        found.append((peak, question))
        size = f"{length / 1e6:7.1f} MB"
        print(f"{question.form} {status} {size}  peak {peak:5.0f} MiB", flush=True)
    return found


def again(service: RunningService, asked: list[Question], num_repeats: int) -> float:
    """Repeat requests in random order, and print the distribution of each; the highest in MiB."""
    peaks: dict[int, list[float]] = {number: [] for number in range(len(asked))}
    drawn = random.Random(0)
    for _ in range(num_repeats):
        for number in drawn.sample(range(len(asked)), len(asked)):
            _, _, peak = peak_of(service, asked[number])
            peaks[number].append(peak)
    for number, question in enumerate(asked):
        found = peaks[number]
        print(
            f"{question.file:28} {question.form} {num_repeats} times: {min(found):.0f} to "
            f"{max(found):.0f} MiB, median {statistics.median(found):.0f}"
        )
    return max(peak for found in peaks.values() for peak in found)


def main() -> None:
    """Ask for each form of each answer, and print the peaks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", default="", help="part of an input's name; default: all")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--repeats", type=int, default=0, help="of the ten highest forms")
    parser.add_argument("service_flags", nargs="*", help="after --: flags of the server")
    options = parser.parse_args()
    with running_service(f"--model={options.model}", *options.service_flags) as service:
        small = io.BytesIO()
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(small, "PNG")
        for route in ROUTES.values():
            request = rest_request(route, LISTS, File("small", "image/png", small.getvalue()))
            ask(service.http_port, *request)
        warm = peak_mib(service.pid, reset=True)
        print(f"after one small request of each kind: {warm:.0f} MiB")
        found = every_form(service, options.input)
        found.sort(key=lambda pair: -pair[0])
        highest = found[0][0]
        if options.repeats:
            print()
            asked = [question for _, question in found[:NUM_REPEATED]]
            highest = max(highest, again(service, asked, options.repeats))
    print(f"\n{len(found)} forms, highest peak: {highest:.0f} MiB (claim: at most {LIMIT_MIB})")
    print(f"this client: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB")


if __name__ == "__main__":
    main()
