"""Runs the real program on free ports and sends the same request over either transport."""

import base64
import io
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from google.protobuf import json_format
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from numpy.typing import NDArray
from PIL import Image

from model.package import ModelPackage
from service.grpc.generated import (
    classify_pb2,
    dense_pb2,
    embed_pb2,
    features_pb2,
    segment_pb2,
    tensor_pb2,
)
from service.grpc.generated.encoder_service_pb2_grpc import EncoderServiceStub

# Ends hangs; on a busy machine a start or a conversion may take a minute.
LIMIT_S = 120.0
UNKNOWN_FIELD = b"\xa2\x06\x01x"  # field 100 is unknown to every message
DTYPES = {
    tensor_pb2.DATA_TYPE_FLOAT32: "<f4",
    tensor_pb2.DATA_TYPE_UINT16: "<u2",
    tensor_pb2.DATA_TYPE_FLOAT16: "<f2",
    tensor_pb2.DATA_TYPE_INT8: "i1",
}
CLASS_FIELDS = {"label": "u2", "probability": "f4", "cosine": "f4"}
ROUTES: Mapping[str, tuple[str, str, Any]] = {
    "embed_images": ("/v1/images:embed", "EmbedImages", embed_pb2.EmbedImagesRequest),
    "embed_texts": ("/v1/texts:embed", "EmbedTexts", embed_pb2.EmbedTextsRequest),
    "segment_images": ("/v1/images:segment", "SegmentImages", segment_pb2.SegmentImagesRequest),
    "classify_images": (
        "/v1/images:classify",
        "ClassifyImages",
        classify_pb2.ClassifyImagesRequest,
    ),
    "visualize_features": (
        "/v1/images:features",
        "VisualizeFeatures",
        features_pb2.VisualizeFeaturesRequest,
    ),
    "estimate_depth": ("/v1/images:depth", "EstimateDepth", dense_pb2.EstimateDepthRequest),
    "estimate_normals": (
        "/v1/images:normals",
        "EstimateNormals",
        dense_pb2.EstimateNormalsRequest,
    ),
}


@dataclass(frozen=True)
class Answer:
    """Result of a request: arrays by name, or an error."""

    status: str
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    code: str | None = None
    param: str | None = None
    message: str = ""
    errors: tuple[tuple[int, str, str, str], ...] = ()


class Program:
    """A running `python -m service`; a thread reads its log."""

    def __init__(
        self,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        program: Sequence[str] = ("-m", "service"),
    ) -> None:
        command = [sys.executable, *program, "--host=127.0.0.1"]
        command += ["--http-port=0", "--grpc-port=0", "--metrics-port=0", *arguments]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self.log: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._passed: list[dict[str, Any]] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def wait_for(self, message: str) -> dict[str, Any]:
        """Wait for the next log record with this message, in any order among other messages.

        The processes of one server write to the log each in its own time.
        """
        for passed in self._passed:
            if passed["message"] == message:
                self._passed.remove(passed)
                return passed
        while (line := self._lines.get(timeout=LIMIT_S)) is not None:
            record: dict[str, Any] = json.loads(line) if line.startswith("{") else {}
            if record.get("message") == message:
                return record
            if record:
                self._passed.append(record)
        raise AssertionError("the program ended first:\n" + "".join(self.log))

    def records(self, message: str) -> list[dict[str, Any]]:
        """The log records with this message so far."""
        parsed = [json.loads(line) for line in tuple(self.log) if line.startswith("{")]
        return [record for record in parsed if record["message"] == message]

    def end(self) -> int:
        """Send SIGTERM and return the exit status; kills it after a timeout."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        self.reader.join(LIMIT_S)
        return status

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stream:
            for line in stream:
                self.log.append(line)
                self._lines.put(line)
        self._lines.put(None)


@dataclass(frozen=True)
class Service:
    """A ready program with clients."""

    program: Program
    ports: Mapping[str, int]

    def over_rest(self, method: str, fields: Mapping[str, Any]) -> Answer:
        """Send JSON; arrays come as base64."""
        body: dict[str, Any] = {"encoding": "base64", **fields}
        if "images" in body:
            body["images"] = [base64.b64encode(image).decode() for image in body["images"]]
        for name in {"classes", "background_classes"} & body.keys():
            body[name] = [_rest_class(one) for one in body[name]]
        if body.pop("unknown_field", False):
            body["colour"] = "red"
        url = f"http://127.0.0.1:{self.ports['http']}{ROUTES[method][0]}"
        answer = httpx.post(url, json=body, timeout=LIMIT_S)
        content = answer.json()
        if answer.status_code != 200:
            error = content["error"]
            status = str(answer.status_code)
            return Answer(status, {}, error["code"], error["param"], error["message"])
        arrays = {
            f"{item['index']}.{name}": array
            for item in content["data"]
            for name, array in _rest_arrays(item).items()
        }
        errors = tuple(
            (e["index"], e["error"]["code"], e["error"]["message"], e["error"]["param"])
            for e in content.get("errors", ())
        )
        return Answer("200", arrays, errors=errors)

    def over_grpc(self, method: str, fields: Mapping[str, Any]) -> Answer:
        """Send an RPC with the generated stub."""
        _, rpc, request_type = ROUTES[method]
        request = _to_protobuf(request_type, fields)
        with self._channel() as channel:
            try:
                answer = getattr(EncoderServiceStub(channel), rpc)(request, timeout=LIMIT_S)
            except grpc.RpcError as error:
                return _from_status(error)
        errors = tuple((e.index, e.reason, e.message, e.field) for e in answer.errors)
        return Answer("OK", _arrays(answer), errors=errors)

    def _channel(self) -> grpc.Channel:
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        return grpc.insecure_channel(f"127.0.0.1:{self.ports['grpc']}", options=options)

    def metrics(self) -> str:
        """Return all metrics, parsed as Prometheus does."""
        url = f"http://127.0.0.1:{self.ports['metrics']}/metrics"
        return httpx.get(url, timeout=LIMIT_S).text

    def metric(self, name: str) -> float:
        """Sum the samples of a metric."""
        lines = self.metrics().splitlines()
        lines = [line for line in lines if line.split("{")[0].split(" ")[0] == name]
        return sum(float(line.rpartition(" ")[2]) for line in lines)


@pytest.fixture(scope="session")
def run_service(
    tiny_package: ModelPackage,
) -> Callable[..., Any]:
    """Context that runs the program with the tiny package, or others, and these arguments."""

    @contextmanager
    def run(
        *arguments: str, packages: Sequence[ModelPackage] = (tiny_package,), **options: Any
    ) -> Iterator[Service]:
        models = ",".join(str(package.path) for package in packages)
        program = Program(f"--model={models}", *arguments, **options)
        try:
            ready = program.wait_for("ready")
            yield Service(program, {name: ready[name] for name in ("http", "grpc", "metrics")})
        finally:
            assert program.end() == 0, "".join(program.log)

    return run


@pytest.fixture(scope="session")
def run_program() -> type[Program]:
    """Start the program with any arguments; the fixture stops it."""
    return Program


@pytest.fixture(scope="session")
def service(run_service: Callable[..., Any]) -> Iterator[Service]:
    """One service shared by tests that only send requests."""
    with run_service("--max-request-bytes=2000000", "--max-image-bytes=1000000") as running:
        yield running


@pytest.fixture(scope="session")
def photo() -> Callable[..., bytes]:
    """Create a smooth JPEG by seed and size."""

    def make(seed: int = 0, size: tuple[int, int] = (90, 60), file_format: str = "JPEG") -> bytes:
        noise = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
        stream = io.BytesIO()
        image = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
        image.save(stream, file_format)
        return stream.getvalue()

    return make


def _to_protobuf(request_type: Any, fields: Mapping[str, Any]) -> Any:
    """Convert fields to protobuf; enums by name, unknown names as numbers."""
    plain = dict(fields)
    images = plain.pop("images", ())
    is_unknown = plain.pop("unknown_field", False)
    is_global = request_type is classify_pb2.ClassifyImagesRequest
    is_mask = request_type is segment_pb2.SegmentImagesRequest
    if "dtype" in plain:
        plain["vector_type"] = plain.pop("dtype")
    enums = {
        "outputs": "IMAGE_OUTPUT",
        "fit": "FIT",
        "size": "MASK_SIZE" if is_mask else "MAP_SIZE",
        "features": "GLOBAL_FEATURES" if is_global else "DENSE_FEATURES",
        "mode": "SEGMENT_MODE",
        "kind": "FEATURE_KIND",
        "scope": "FEATURE_SCOPE",
        "vector_type": "VECTOR_TYPE",
    }
    for name, prefix in enums.items():
        if name in plain:
            plain[name] = _enum_names(plain[name], prefix)
    if isinstance(plain.get("templates"), str):
        plain["templates"] = {"set": _enum_names(plain["templates"], "TEMPLATE_SET")}
    elif "templates" in plain:
        plain["templates"] = {"custom": {"templates": plain["templates"]}}
    misspelt = []
    for name in ("classes", "background_classes"):
        if name in plain:
            plain[name] = [dict(c) if isinstance(c, dict) else {"name": c} for c in plain[name]]
            misspelt += [(name, i) for i, c in enumerate(plain[name]) if c.pop("promts", None)]
    request = json_format.ParseDict(plain, request_type())
    for name, index in misspelt:
        getattr(request, name)[index].MergeFromString(UNKNOWN_FIELD)
    for image in images:
        request.images.add(encoded=image)
    if is_unknown:
        request.MergeFromString(UNKNOWN_FIELD)
    return request


def _enum_names(value: str | list[str], prefix: str) -> Any:
    if isinstance(value, list):
        return [_enum_names(v, prefix) for v in value]
    return 99 if value == "unheard-of" else f"{prefix}_{value.upper()}"


def _rest_class(one: Any) -> Any:
    """A class in REST's form, where the examples of gRPC's differ."""
    if not isinstance(one, dict) or "examples" not in one:
        return one
    examples = []
    for example in map(dict, one["examples"]):
        for name in {"point", "box"} & example.keys():
            example[name] = list(example[name].values())
        if "mask" in example:
            mask = dict(example["mask"])
            example["mask"] = {"size": [mask.pop("height"), mask.pop("width")], **mask}
        examples.append(example)
    return {**one, "examples": examples}


def _rest_arrays(item: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """Arrays of one item, including scales and class fields."""
    arrays = {n: _from_base64(v) for n, v in item.items() if isinstance(v, dict) and "dtype" in v}
    for name, scale in item.get("scales", {}).items():
        is_array = isinstance(scale, dict)
        values = _from_base64(scale) if is_array else np.array(scale, np.float32)
        arrays[f"{name}_scale"] = values.ravel()
    if "probability" in item.get("classes", [{}])[0]:
        arrays |= {f: np.array([c[f] for c in item["classes"]], t) for f, t in CLASS_FIELDS.items()}
    if "area_share" in item.get("classes", [{}])[0]:
        arrays["class_scores"] = np.array([c["score"] for c in item["classes"]])
        found = item.get("instances", [])
        assert all(one["segmentation"]["size"] == [item["height"], item["width"]] for one in found)
        text = ";".join(one["segmentation"]["counts"] for one in found)
        rows = [(one["label"], one["area"], *one["bbox"], one["score"]) for one in found]
        arrays |= {"instances": np.array(rows), "runs": np.frombuffer(text.encode(), np.uint8)}
    return arrays


def _from_base64(value: dict[str, Any]) -> NDArray[Any]:
    dtype = np.dtype(value["dtype"]).newbyteorder("<")
    return np.frombuffer(base64.b64decode(value["data"]), dtype).reshape(value["shape"])


def _from_tensor(tensor: tensor_pb2.Tensor) -> NDArray[Any]:
    return np.frombuffer(tensor.data, DTYPES[tensor.data_type]).reshape(tuple(tensor.shape))


def _arrays(answer: Any) -> dict[str, NDArray[Any]]:
    if isinstance(answer, embed_pb2.EmbedTextsResponse):
        bad = {error.index for error in answer.errors}
        rows = [(i, row) for i, row in enumerate(_from_tensor(answer.embeddings)) if i not in bad]
        scales = [(i, s) for i, s in enumerate(answer.embeddings.row_scales) if i not in bad]
        found = {f"{index}.embedding_scale": np.array([s], np.float32) for index, s in scales}
        return {f"{index}.embedding": row for index, row in rows} | found
    # Each answer has one list of items and one of errors.
    (items,) = (
        value
        for field, value in answer.ListFields()
        if field.is_repeated and field.name != "errors"
    )
    return {
        f"{index}.{name}": array
        for index, item in enumerate(items)
        for name, array in _grpc_arrays(item).items()
    }


def _grpc_arrays(item: Any) -> dict[str, NDArray[Any]]:
    arrays = {}
    for descriptor, value in item.ListFields():
        if isinstance(value, tensor_pb2.Tensor):
            arrays[descriptor.name] = _from_tensor(value)
            if value.row_scales:
                arrays[f"{descriptor.name}_scale"] = np.array(value.row_scales, np.float32)
    if isinstance(item, classify_pb2.Classification) and item.classes:
        for name, dtype in CLASS_FIELDS.items():
            arrays[name] = np.array([getattr(c, name) for c in item.classes], dtype)
    if isinstance(item, segment_pb2.Segmentation) and item.classes:
        arrays["class_scores"] = np.array([c.score for c in item.classes])
        found = item.instances
        text = ";".join(one.mask.counts for one in found)
        boxes = [(b.left, b.top, b.width, b.height) for b in (one.box for one in found)]
        rows = [(i.label, i.area, *box, i.score) for i, box in zip(found, boxes, strict=True)]
        arrays |= {"instances": np.array(rows), "runs": np.frombuffer(text.encode(), np.uint8)}
    return arrays


def _from_status(error: Any) -> Answer:
    metadata = dict(error.trailing_metadata() or ())
    details = status_pb2.Status.FromString(metadata.get("grpc-status-details-bin", b"")).details
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in details:
        detail.Unpack(info)
        detail.Unpack(bad)
    param = bad.field_violations[0].field if bad.field_violations else None
    return Answer(error.code().name, {}, info.reason or None, param, error.details())
