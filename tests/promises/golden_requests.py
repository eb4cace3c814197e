"""The requests whose answers are recorded in `golden.json`, and how an answer is summarized.

Arrays are summarized by shape, type, and a few numbers, because CPUs differ in the last bits.
"""

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

import grpc
import httpx
import numpy as np
import safetensors.numpy
import tritonclient.grpc.service_pb2 as v2_pb2
import tritonclient.grpc.service_pb2_grpc as v2_grpc
from google.protobuf import json_format
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from numpy.typing import NDArray
from PIL import Image

from tests.processes.server import LIMIT_S, ROOT, Server
from tipserve_client.generated import (
    classify_pb2,
    dense_pb2,
    embed_pb2,
    encoder_service_pb2,
    features_pb2,
    segment_pb2,
    stream_pb2,
    tensor_pb2,
)
from tipserve_client.generated import encoder_service_pb2_grpc as v1_grpc

GOLDEN: Final = Path(__file__).parent / "golden.json"
MESSAGES: Final = (
    classify_pb2, dense_pb2, embed_pb2, encoder_service_pb2, features_pb2, segment_pb2, stream_pb2
)  # fmt: skip
DTYPES: Final = {1: "<f4", 2: "<u2", 3: "<f2", 4: "i1"}
# What depends on the machine or the process, or is a table of the package; only the names count.
VOLATILE: Final = {
    "created", "device", "runtime_reason", "buckets", "package_digest", "last_inference",
    "inference_stats", "batch_stats", "inference_count", "execution_count", "version",
    "request_id", "scores", "parity",
}  # fmt: skip
# A setting that may go.
SETTINGS: Final = {"max_work_memory_bytes"}
SAMPLES: Final = 6
LONG_LIST: Final = 9
MANY_LABELS: Final = 24
UNKNOWN_FIELD: Final = b"\xa2\x06\x01x"  # field 100, which no message has


@dataclass(frozen=True)
class Ask:
    """A request over one protocol to one of the shared servers."""

    name: str
    server: str
    path: str  # of REST, or the name of an RPC
    body: Any = None  # JSON, or bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()  # parts of a form, or the images of an RPC

    @property
    def is_rpc(self) -> bool:
        """Whether it is sent over gRPC."""
        return "/" not in self.path


@cache
def picture(name: str) -> bytes:
    """A small photograph, or a broken one."""
    if name == "broken":
        return picture("scene")[:700]
    if name == "text":
        return b"no image"
    file, size = {
        "scene": ("scene.png", (224, 224)),
        "fruits": ("fruits.jpg", (171, 160)),
        "squirrel": ("squirrel.jpg", (240, 191)),
    }[name]
    stream = io.BytesIO()
    with Image.open(ROOT / "examples" / file) as image:
        image.convert("RGB").resize(size).save(stream, "PNG")
    return stream.getvalue()


def encoded(name: str) -> str:
    """The same, in base64."""
    return base64.b64encode(picture(name)).decode()


MEAL: Final = ["burger", "sunflower", "book"]
SCENE: Final = {"image": encoded("scene")}
BOTH: Final = {"images": [encoded("scene"), encoded("fruits")]}
ARRAYS: Final = {"encoding": "base64"}
NPY, TENSORS, PNG = "application/x-npy", "application/octet-stream", "image/png"
EMBED, SEGMENT = "/v1/images:embed", "/v1/images:segment"
CLASSIFY, FEATURES, TEXTS = "/v1/images:classify", "/v1/images:features", "/v1/texts:embed"
DEPTH, NORMALS, OPENAI = "/v1/images:depth", "/v1/images:normals", "/v1/embeddings"
V2: Final = "/v2/models/tipserve-student"
EXAMPLES: Final = [
    {"name": "top", "examples": [{"box": [0, 0, 224, 90]}, {"point": [110, 40]}]},
    {"name": "corner", "examples": [{"box": [120, 120, 100, 100]}]},
]


def rest(
    name: str, path: str, body: Any = None, accept: str = "", server: str = "student", **more: Any
) -> Ask:
    """A REST request; without a body it is a GET."""
    headers = {"Accept": accept} if accept else {}
    return Ask(name, server, path, body, {**headers, **more.pop("headers", {})}, **more)


def rpc(
    name: str, method: str, body: Any = None, *images: str, server: str = "student", **more: Any
) -> Ask:
    """An RPC; the body is the JSON of its message, without the images."""
    return Ask(name, server, method, body or {}, files=images, **more)


def infer_bytes(name: str) -> tuple[bytes, dict[str, str]]:
    """A body of V2 with an image as a binary tensor, and its headers."""
    element = len(picture(name)).to_bytes(4, "little") + picture(name)
    parameters = {"binary_data_size": len(element)}
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "parameters": parameters}
    outputs = [{"name": "cls1", "parameters": {"binary_data": False}}]
    head = json.dumps({"id": "7", "inputs": [tensor], "outputs": outputs}).encode()
    return head + element, {"Inference-Header-Content-Length": str(len(head))}


BINARY, BINARY_HEADERS = infer_bytes("scene")
TEXT_TENSOR: Final = {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["a dog", "sky"]}
WITH_HEAD: Final = {"classes": ["head:meal"]}

ANSWERS: Final = (
    rest("models", "/v1/models"),
    rest("model", "/v1/models/tipserve-student"),
    rest("embed", EMBED, SCENE),
    rest("embed, every output", EMBED, {
        **BOTH, **ARRAYS, "outputs": ["patches", "values", "cls1", "cls2"], "fit": "aspect",
    }),
    rest("embed, raw image", f"{EMBED}?outputs=cls1,cls2&resolution=56&normalize=false",
         picture("squirrel"), headers={"Content-Type": "image/png"}),
    rest("embed, form", EMBED, {"outputs": "cls2", "fit": "aspect"}, files=("scene", "fruits")),
    rest("embed, npy", f"{EMBED}?outputs=patches", picture("scene"), NPY,
         headers={"Content-Type": "image/png"}),
    rest("embed, safetensors", EMBED, {**BOTH, "dtype": "int8", "outputs": ["patches"]}, TENSORS),
    rest("embed, float16", EMBED, {**SCENE, **ARRAYS, "dtype": "float16"}),
    rest("embed, partial", EMBED, {
        "images": [encoded("text"), encoded("scene"), encoded("broken")], **ARRAYS,
        "partial": True,
    }),
    rest("texts", TEXTS, {"texts": ["a dog", "Sky"], **ARRAYS}),
    rest("texts, tcl, int8", TEXTS, {
        "texts": ["dog", "cat"], **ARRAYS, "templates": "tcl", "dtype": "int8",
    }),
    rest("texts, npy", TEXTS, {"texts": ["dog"], "templates": ["a {}", "{}!"]}, NPY),
    rest("texts, partial", TEXTS, {"texts": ["dog", " ", "a" * 3000], "partial": True}, TENSORS),
    rest("segment", SEGMENT, {**SCENE, **ARRAYS, "classes": MEAL}),
    rest("segment, png", SEGMENT, {
        **SCENE, "classes": MEAL, "background_threshold": 0.1,
    }, PNG),
    rest("segment, query", f"{SEGMENT}?classes=burger,sunflower&templates=a {{}}&templates={{}}",
         picture("scene"), PNG, headers={"Content-Type": "image/png"}),
    rest("segment, labels", SEGMENT, {**SCENE, "classes": MEAL, "format": "labels"}, PNG),
    rest("segment, overlay", SEGMENT, {**SCENE, "classes": MEAL, "format": "overlay"}, PNG),
    rest("segment, rle", SEGMENT, {
        **BOTH, "classes": MEAL, "background_classes": ["table"], "format": "rle",
        "include_instances": True, "min_area_share": 0.05,
    }),
    rest("segment, rle counts", SEGMENT, {
        **SCENE, "classes": MEAL, "format": "rle_counts", "size": "model", "features": "values",
    }),
    rest("segment, polygons", SEGMENT, {
        **SCENE, "classes": MEAL, "format": "polygons", "tolerance": 2, "templates": "tcl",
    }),
    rest("segment, slide", SEGMENT, {
        **SCENE, **ARRAYS, "classes": MEAL, "mode": "slide", "include_scores": True,
    }),
    rest("segment, patches, npy", SEGMENT, {
        **SCENE, "classes": MEAL, "size": "patch", "resolution": 224, "fit": "aspect",
    }, NPY),
    rest("segment, scores, safetensors", SEGMENT, {
        **BOTH, "classes": [{"name": "food", "prompts": ["a burger", "fruit"]}, "book"],
        "include_scores": True,
    }, TENSORS),
    rest("segment, examples", SEGMENT, {**BOTH, **ARRAYS, "classes": EXAMPLES}),
    rest("segment, own head", SEGMENT, {**SCENE, **ARRAYS, **WITH_HEAD, "resolution": 224}),
    rest("classify", CLASSIFY, {**BOTH, "classes": MEAL}),
    rest("classify, options", CLASSIFY, {
        **SCENE, "classes": MEAL, "top_k": 2, "temperature": 0.5, "features": "cls2",
        "templates": "tcl",
    }),
    rest("features", FEATURES, SCENE, PNG),
    rest("features, groups", FEATURES, {
        **SCENE, "kind": "groups", "group_count": 3, "seed": 5, "size": "model",
    }, NPY),
    rest("features, component", FEATURES, {
        **BOTH, **ARRAYS, "kind": "component", "scope": "request", "features": "values",
    }),
    rest("depth", DEPTH, {**SCENE, **ARRAYS}, server="default"),
    rest("depth, millimetres", DEPTH, SCENE, PNG, server="default"),
    rest("depth, colors", DEPTH, {**SCENE, "format": "colors"}, PNG, server="default"),
    rest("normals, png", NORMALS, SCENE, PNG, server="default"),
    rest("normals, npy", NORMALS, {**SCENE, "size": "model"}, NPY, server="default"),
    rest("embed, dense maps", EMBED, {**SCENE, "outputs": ["cls1", "depth", "normals"]}, TENSORS,
         server="default"),
    rest("segment by the default model", SEGMENT, {
        **SCENE, **ARRAYS, "classes": MEAL, "mode": "slide",
    }, server="default"),
    rest("classify by the default model", CLASSIFY, {**BOTH, "classes": MEAL}, server="default"),
    rest("openai", OPENAI, {"model": "tipserve-student", "input": ["a dog", "sky"]}),
    rest("openai, null, base64, dimensions", OPENAI, {
        "input": "a dog", "encoding_format": "base64", "dimensions": 8, "user": None,
    }),
    rest("openai, mixture", OPENAI, {
        "input": ["a dog", f"data:image/png;base64,{encoded('scene')}", {"text": "sky"}],
    }),
    rest("openai, token ids", OPENAI, {"input": [[0, 2], [3, 4]]}),
    rest("v2 server", "/v2"),
    rest("v2 model", V2),
    rest("v2 config", f"{V2}/config"),
    rest("v2 statistics", f"{V2}/stats"),
    rest("v2 texts", f"{V2}/infer", {"inputs": [TEXT_TENSOR], "parameters": {"timeout": 9000000}}),
    rest("v2 binary", f"{V2}/infer", BINARY, headers=BINARY_HEADERS),
    rest("sagemaker", "/invocations", picture("scene"), PNG, headers={
        "Content-Type": "image/png",
        "X-Amzn-SageMaker-Custom-Attributes": "/v1/images:segment?classes=burger,book",
    }),
    rest("vertex", "/invocations", {
        "instances": ["a dog", {"b64": encoded("scene")}], "parameters": {"dimensions": 8},
    }),
    rest("hugging face", "/", {"inputs": ["a dog"]}),
    rest("hugging face, classes", "/", {
        "inputs": encoded("scene"), "parameters": {"candidate_labels": MEAL},
    }),
    rest("tei", "/embed", {"inputs": "a dog", "truncate": True}),
    rpc("GetModel", "GetModel", {"name": "tipserve-student"}),
    rpc("ListModels", "ListModels"),
    rpc("EmbedImages", "EmbedImages", {
        "outputs": ["IMAGE_OUTPUT_PATCHES", "IMAGE_OUTPUT_CLS1"],
        "vectorType": "VECTOR_TYPE_INT8",
    }, "scene", "fruits"),
    rpc("EmbedTexts, partial", "EmbedTexts", {"texts": ["a dog", " "], "partial": True}),
    rpc("SegmentImages", "SegmentImages", {
        "classes": [{"name": name} for name in MEAL], "includeInstances": True,
        "minAreaShare": 0.05, "mode": "SEGMENT_MODE_SLIDE",
    }, "scene"),
    rpc("SegmentImages, own head", "SegmentImages", {"classes": [{"name": "head:meal"}]}, "scene"),
    rpc("ClassifyImages", "ClassifyImages", {
        "classes": [{"name": name} for name in MEAL], "topK": 2,
    }, "scene"),
    rpc("VisualizeFeatures", "VisualizeFeatures", {"kind": "FEATURE_KIND_GROUPS"}, "scene"),
    rpc("EstimateDepth", "EstimateDepth", {}, "scene", server="default"),
    rpc("EstimateNormals", "EstimateNormals", {"size": "MAP_SIZE_MODEL"}, "scene",
        server="default"),
    rpc("Stream", "Stream", {"id": "a", "embedTexts": {"texts": ["a dog"]}}),
    rpc("v2 ServerMetadata", "ServerMetadata"),
    rpc("v2 ModelMetadata", "ModelMetadata", {"name": "tipserve-student"}),
    rpc("v2 ModelInfer", "ModelInfer", {
        "modelName": "tipserve-student",
        "inputs": [{
            "name": "text", "datatype": "BYTES", "shape": [1],
            "contents": {"bytesContents": [base64.b64encode(b"a dog").decode()]},
        }],
    }),
)  # fmt: skip

CLASSES: Final = {"classes": ["burger"]}
MISTAKES: Final = (
    rest("no such path", "/v1/images:paint", SCENE),
    rest("method", EMBED),
    rest("no json", EMBED, b"{", headers={"Content-Type": "application/json"}),
    rest("media type", EMBED, b"a,b", headers={"Content-Type": "text/csv"}),
    rest("accept", EMBED, SCENE, "text/html"),
    rest("unknown field", EMBED, {**SCENE, "colour": "red"}),
    rest("unknown query field", f"{EMBED}?colour=red", picture("scene"),
         headers={"Content-Type": "image/png"}),
    rest("unknown field of a form", EMBED, {"colour": "red"}, files=("scene",)),
    rest("unknown field of a class", SEGMENT, {**SCENE, "classes": [{"name": "a", "promts": []}]}),
    rest("wrong type", EMBED, {**SCENE, "resolution": "big"}),
    rest("no image", EMBED, {}),
    rest("image and images", EMBED, {**SCENE, **BOTH}),
    rest("empty list", EMBED, {"images": []}),
    rest("not base64", EMBED, {"image": "?"}),
    rest("no such image format", EMBED, {"images": [encoded("scene"), encoded("text")]}),
    rest("damaged image", EMBED, {"image": encoded("broken")}),
    rest("url", EMBED, {"image": "https://example.org/a.jpg"}),
    rest("too many images", EMBED, {"images": [encoded("text")] * 33}),
    rest("resolution", EMBED, {**SCENE, "resolution": 57}),
    rest("output", EMBED, {**SCENE, "outputs": ["cls3"]}),
    rest("embed by no such model", EMBED, {**SCENE, "model": "other"}),
    rest("no such model", "/v1/models/other"),
    rest("no dense heads", DEPTH, SCENE),
    rest("no classes", SEGMENT, {**SCENE, "classes": []}),
    rest("class twice", SEGMENT, {**SCENE, "classes": ["a", "a"]}),
    rest("threshold", SEGMENT, {**SCENE, **CLASSES, "background_threshold": 2}),
    rest("no such head", SEGMENT, {**SCENE, "classes": ["head:other"]}),
    rest("example outside", SEGMENT, {
        **SCENE, "classes": [{"name": "a", "examples": [{"point": [900, 5]}]}],
    }),
    rest("mixed classes", SEGMENT, {**BOTH, "classes": [*EXAMPLES, "book"]}),
    rest("temperature", CLASSIFY, {**SCENE, **CLASSES, "temperature": 0}),
    rest("seed without groups", FEATURES, {**SCENE, "seed": 1}),
    rest("blank text", TEXTS, {"texts": ["a", " "]}),
    rest("template", TEXTS, {"texts": ["a"], "templates": ["photo"]}),
    rest("long text", TEXTS, {"texts": ["a" * 3000]}),
    rest("openai, no input", OPENAI, {"model": "tipserve-student"}),
    rest("openai, unknown field", OPENAI, {"input": "a", "colour": "red"}),
    rest("openai, no such model", OPENAI, {"input": "a", "model": "other"}),
    rest("openai, no such token", OPENAI, {"input": [7]}),
    rest("openai, dimensions", OPENAI, {"input": "a", "dimensions": 193}),
    rest("v2, no such model", "/v2/models/other"),
    rest("v2, no such tensor", f"{V2}/infer", {"inputs": [{**TEXT_TENSOR, "name": "words"}]}),
    rest("v2, shape", f"{V2}/infer", {"inputs": [{**TEXT_TENSOR, "shape": [3]}]}),
    rest("vertex, instance", "/invocations", {"instances": [{"video": "a"}]}),
    rest("hugging face, empty", "/", {"inputs": []}),
    rpc("gRPC: no images", "EmbedImages"),
    rpc("gRPC: damaged image", "EmbedImages", {}, "scene", "broken"),
    rpc("gRPC: unknown field", "EmbedImages", {"unknown": True}, "scene"),
    rpc("gRPC: model", "EmbedTexts", {"texts": ["a"], "model": "other"}),
    rpc("gRPC: no dense heads", "EstimateDepth", {}, "scene"),
    rpc("gRPC: enum", "EmbedImages", {"fit": 99}, "scene"),
    rpc("gRPC: class twice", "SegmentImages", {"classes": [{"name": "a"}] * 2}, "scene"),
    rpc("gRPC: stream", "Stream", {"id": "a", "embedTexts": {"texts": [" "]}}),
    rpc("gRPC: v2, no such model", "ModelMetadata", {"name": "other"}),
)  # fmt: skip
REQUESTS: Final = {ask.name: ask for ask in (*ANSWERS, *MISTAKES)}
assert len(REQUESTS) == len(ANSWERS) + len(MISTAKES), "a name is given twice"


def answer(server: Server, ask: Ask) -> dict[str, Any]:
    """Send a request; returns its status and the summary of its answer."""
    return _over_grpc(server.grpc, ask) if ask.is_rpc else _over_rest(server.rest, ask)


def _over_rest(url: str, ask: Ask) -> dict[str, Any]:
    given: dict[str, Any] = {}
    if ask.files:
        given["data"] = ask.body
        given["files"] = [("image", (n, picture(n), "image/png")) for n in ask.files]
    elif isinstance(ask.body, bytes):
        given["content"] = ask.body
    elif ask.body is not None:
        given["json"] = ask.body
    method = "POST" if given else "GET"
    got = httpx.request(method, url + ask.path, headers=ask.headers, timeout=LIMIT_S, **given)
    kind = got.headers.get("content-type", "")
    body = got.json() if kind == "application/json" else _arrays(kind, got.content)
    return {"status": got.status_code, "type": kind, "body": summary(body)}


def _arrays(kind: str, content: bytes) -> Any:
    if kind == NPY:
        return np.load(io.BytesIO(content))
    if kind == PNG:
        with Image.open(io.BytesIO(content)) as image:
            return {"mode": image.mode, "pixels": np.asarray(image)}
    if kind == TENSORS:
        with_names = safetensors.numpy.load(content)
        head = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return {**with_names, "metadata": head.get("__metadata__", {})}
    return content.decode()


def _over_grpc(address: str, ask: Ask) -> dict[str, Any]:
    with grpc.insecure_channel(address) as channel:
        try:
            return {"status": "OK", "body": _call(channel, ask)}
        except grpc.RpcError as error:
            return _status(error)


def _call(channel: grpc.Channel, ask: Ask) -> Any:
    if hasattr(v2_pb2, f"{ask.path}Request"):
        stub: Any = v2_grpc.GRPCInferenceServiceStub(channel)
        request = json_format.ParseDict(ask.body, getattr(v2_pb2, f"{ask.path}Request")())
    else:
        stub = v1_grpc.EncoderServiceStub(channel)
        (module,) = (m for m in MESSAGES if hasattr(m, f"{ask.path}Request"))
        request = getattr(module, f"{ask.path}Request")()
        fields = dict(ask.body)
        if fields.pop("unknown", False):
            request.MergeFromString(UNKNOWN_FIELD)
        json_format.ParseDict(fields, request)
        for name in ask.files:
            request.images.add(encoded=picture(name))
    if ask.path == "Stream":
        (message,) = stub.Stream(iter([request]), timeout=LIMIT_S)
    else:
        message = getattr(stub, ask.path)(request, timeout=LIMIT_S)
    return summary(_plain(message))


def _plain(message: Any) -> Any:
    """A message as JSON has it, but tensors as arrays."""
    if isinstance(message, tensor_pb2.Tensor):
        array = np.frombuffer(message.data, DTYPES[message.data_type]).reshape(message.shape)
        return {"array": array, "scales": list(message.row_scales)}
    if isinstance(message, v2_pb2.ModelInferResponse):
        arrays = [np.frombuffer(raw, "<f4") for raw in message.raw_output_contents]
        heads = [(output.name, list(output.shape)) for output in message.outputs]
        return {"outputs": heads, "arrays": arrays}
    if not hasattr(message, "ListFields"):
        return message
    found = {}
    for descriptor, value in message.ListFields():
        if isinstance(value, (str, bytes, int, float)) or hasattr(value, "ListFields"):
            found[descriptor.name] = _plain(value)
        else:
            found[descriptor.name] = [_plain(one) for one in value]
    return found


def _status(error: Any) -> dict[str, Any]:
    metadata = dict(error.trailing_metadata() or ())
    details = status_pb2.Status.FromString(metadata.get("grpc-status-details-bin", b"")).details
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in details:
        detail.Unpack(info)
        detail.Unpack(bad)
    fields = [violation.field for violation in bad.field_violations]
    body = {"message": error.details(), "reason": info.reason, "fields": fields}
    return {"status": error.code().name, "body": body}


def summary(value: Any, name: str = "") -> Any:
    """What is recorded of a value: names and words as they are, arrays by a few numbers."""
    array = _as_array(value, name)
    if array is not None:
        return _of_array(array)
    if name in VOLATILE:
        return "..."  # its name stays, because callers read it
    if name == "counts":  # run lengths of COCO
        return {"pixels": sum(value)} if isinstance(value, list) else "..."
    if name == "segmentation" and isinstance(value, list):  # polygons of COCO
        corners_N2 = np.concatenate([np.reshape(one, (-1, 2)) for one in value])
        return {"box": [*corners_N2.min(axis=0).tolist(), *corners_N2.max(axis=0).tolist()]}
    if isinstance(value, dict):
        return {key: summary(one, key) for key, one in value.items() if key not in SETTINGS}
    return [summary(one) for one in value] if isinstance(value, (list, tuple)) else value


def _as_array(value: Any, name: str) -> NDArray[Any] | None:
    """An array in any form: base64, or a long or nested list of numbers."""
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, dict) and value.keys() >= {"data", "dtype", "shape"}:
        array = np.frombuffer(base64.b64decode(value["data"]), value["dtype"])
        return array.reshape(value["shape"])
    if name == "embedding" and isinstance(value, str):
        return np.frombuffer(base64.b64decode(value), "<f4")
    if not isinstance(value, list) or name in {"segmentation", "counts"}:
        return None
    try:
        found: NDArray[Any] = np.array(value)
    except ValueError:  # of lists of several lengths
        return None
    is_long = found.ndim > 1 or found.size >= LONG_LIST
    return found if found.dtype.kind in "if" and is_long else None


def _of_array(array: NDArray[Any]) -> dict[str, Any]:
    head = {"shape": list(array.shape), "dtype": array.dtype.name}
    labels, counts = np.unique(array, return_counts=True)
    if array.dtype.kind in "iu" and len(labels) <= MANY_LABELS:
        shares = {
            str(label): round(n / array.size, 4) for label, n in zip(labels, counts, strict=True)
        }
        return {**head, "shares": shares}
    flat = array.ravel().astype(np.float64)
    chosen = flat[np.linspace(0, flat.size - 1, SAMPLES).astype(int)]
    numbers = [flat.mean(), flat.std(), *chosen]
    return {**head, "numbers": [float(f"{number:.5g}") for number in numbers]}
