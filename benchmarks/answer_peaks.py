"""Peak memory of a server for one request of a few kilobytes in every form of answer.

Claim: no request that a stranger makes small takes the process above 512 MiB.
Run: python -m benchmarks.answer_peaks [--model bundled-student]
"""

import argparse
import base64
import http.client
import io
import json
import math
import resource
import struct
from collections.abc import Iterator
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
    segment_pb2,
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
ANSWER_SIDES = (5820, 5070, 4690, 4510, 3840, 3660, 3560, 3300, 3090, 2890, 2600, 2220, 1780)
NUM_IN_BATCH = 8
REFUSED = {"WEBP", "TIFF with a huge tile"}
LIMIT_MIB = 512
MIB = 1024 * 1024
LISTS, BASE64 = "application/json", "application/json base64"
FORMS = (LISTS, BASE64, "application/x-npy", "application/octet-stream", "image/png")
ROUTES = {
    "segment": "/v1/images:segment?classes=dog,cat",
    "segment, scores": "/v1/images:segment?classes=dog,cat&include_scores=true",
    "segment, slide": "/v1/images:segment?classes=dog,cat&mode=slide",
    "segment, overlay": "/v1/images:segment?classes=dog,cat&format=overlay",
    "segment, polygons": "/v1/images:segment?classes=dog,cat&format=polygons",
    "features": "/v1/images:features",
    "features, groups": "/v1/images:features?kind=groups",
    "features, component": "/v1/images:features?kind=component",
    "embed": "/v1/images:embed?outputs=patches,values,cls1,cls2",
    "classify": "/v1/images:classify?classes=dog,cat",
    "depth": "/v1/images:depth",
    "normals": "/v1/images:normals",
}


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


def ask(port: int, path: str, form: str, *, media: str, body: bytes) -> tuple[int, int]:
    """Status and length of an answer; it is read and dropped."""
    accept, _, encoding = form.partition(" ")
    path += ("&" if "?" in path else "?") + f"encoding={encoding}" if encoding else ""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("POST", path, body, {"Accept": accept, "Content-Type": media})
        answer = connection.getresponse()
        length = 0
        while piece := answer.read(MIB):
            length += len(piece)
        return answer.status, length
    except OSError:
        return 0, 0
    finally:
        connection.close()


def batch(path: str, image: bytes) -> tuple[str, bytes]:
    """The same request as JSON, with several copies of the image."""
    route, _, query = path.partition("?")
    fields: dict[str, Any] = {"images": [base64.b64encode(image).decode()] * NUM_IN_BATCH}
    for name, value in parse_qsl(query):
        fields[name] = value.split(",") if name in {"classes", "outputs"} else value
    return route, json.dumps(fields).encode()


def rpcs(body: bytes) -> dict[str, tuple[str, Any]]:
    """The RPC and its request by name, for each kind of answer."""
    images = [image_pb2.Image(encoded=body)]
    classes = [segment_pb2.SegmentClass(name=name) for name in ("dog", "cat")]
    segment, features = segment_pb2.SegmentImagesRequest, features_pb2.VisualizeFeaturesRequest
    slide = segment_pb2.SEGMENT_MODE_SLIDE
    outputs = ("IMAGE_OUTPUT_PATCHES", "IMAGE_OUTPUT_VALUES")
    names: list[tuple[str, dict[str, Any]]] = [
        ("segment", {}),
        ("scores", {"include_scores": True}),
        ("slide", {"mode": slide}),
    ]
    found: dict[str, tuple[str, Any]] = {
        f"gRPC {name}": ("SegmentImages", segment(images=images, classes=classes, **fields))
        for name, fields in names
    }
    for kind in ("COLORS", "COMPONENT", "GROUPS"):
        request = features(images=images, kind=f"FEATURE_KIND_{kind}")
        found[f"gRPC {kind.lower()}"] = ("VisualizeFeatures", request)
    embed = embed_pb2.EmbedImagesRequest(images=images, outputs=outputs)
    found["gRPC embed"] = ("EmbedImages", embed)
    classify = classify_pb2.ClassifyImagesRequest(images=images, classes=classes)
    found["gRPC classify"] = ("ClassifyImages", classify)
    found["gRPC depth"] = ("EstimateDepth", dense_pb2.EstimateDepthRequest(images=images))
    found["gRPC normals"] = ("EstimateNormals", dense_pb2.EstimateNormalsRequest(images=images))
    return found


def call(service: RunningService, method: str, request: Any) -> tuple[str, int]:
    """Status and length of the answer to one RPC."""
    options = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{service.grpc_port}", options) as channel:
        stub = encoder_service_pb2_grpc.EncoderServiceStub(channel)
        try:
            answer = getattr(stub, method)(request, timeout=120)
        except grpc.RpcError as error:
            return error.code().name, 0
        return "OK", answer.ByteSize()


def peaks(
    service: RunningService, name: str, media: str, body: bytes
) -> Iterator[tuple[str, str, int, float]]:
    """Ask for every form of every answer: form, status, length, and peak."""
    for route, path in ROUTES.items():
        for form in FORMS:
            peak_mib(service.pid, reset=True)
            status, length = ask(service.http_port, path, form, media=media, body=body)
            if status in {400, 406, 422} and name not in REFUSED:
                continue  # there is no such form
            yield f"{route:20} {form:26}", str(status), length, peak_mib(service.pid)
    for route, (method, request) in rpcs(body).items():
        peak_mib(service.pid, reset=True)
        code, length = call(service, method, request)
        yield f"{route:47}", code, length, peak_mib(service.pid)
    for route in ("embed", "classify"):
        peak_mib(service.pid, reset=True)
        path, document = batch(ROUTES[route], body)
        status, length = ask(
            service.http_port, path, LISTS, media="application/json", body=document
        )
        form = f"{NUM_IN_BATCH} images"
        yield f"{route:20} {form:26}", str(status), length, peak_mib(service.pid)


def main() -> None:
    """Ask for each form of each answer, and print the peaks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", default="", help="part of an input's name; default: all")
    parser.add_argument("--model", default="bundled")
    options = parser.parse_args()
    highest = 0.0
    with running_service(f"--model={options.model}") as service:
        pid, port = service.pid, service.http_port
        small = io.BytesIO()
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(small, "PNG")
        for path in ROUTES.values():
            ask(port, path, LISTS, media="image/png", body=small.getvalue())
        print(f"after one small request of each kind: {peak_mib(pid, reset=True):.0f} MiB")
        for name, media, body in inputs():
            if options.input not in name:
                continue
            print(f"\n{name}, {len(body)} bytes")
            for form, status, length, peak in peaks(service, name, media, body):
                highest = max(highest, peak)
                print(f"{form} {status} {length / 1e6:7.1f} MB  peak {peak:5.0f} MiB", flush=True)
    print(f"\nhighest peak: {highest:.0f} MiB (claim: at most {LIMIT_MIB})")
    print(f"this client: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB")


if __name__ == "__main__":
    main()
