"""What an exception says stays in the log: planted in every stage, it is in no answer.

A planted exception has a text of its own; whoever adds a stage adds it here.
"""

import asyncio
import base64
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health

from service.grpc.generated import (
    classify_pb2,
    dense_pb2,
    embed_pb2,
    features_pb2,
    image_pb2,
    open_inference_pb2,
    segment_pb2,
)
from service.server import Server

if TYPE_CHECKING:
    from tests.service.conftest import FakeRuntime

Serving = Callable[..., AbstractAsyncContextManager[Server]]
Encode = Callable[..., bytes]
SECRET = "the planted secret"
LIMIT_S = 20.0
SERVICE = "/tipserve.v1.EncoderService"

BOTH_PROTOCOLS = [
    "service.safety.api_keys.ApiKeys.check",
    "service.safety.protection.BodyMemory.share",
    "service.monitoring.telemetry.Telemetry.begin",
    "service.monitoring.telemetry.Telemetry.end",
    "service.data_plane.check_images",
    "service.data_plane.class_groups",
    "service.models.admission.Admission.admit",
    "service.images.read_size",
    "service.images.load_image",
    "service.lanes.batch_queue.BatchQueue.put",
    "service.models.texts.TextEncoder.encode",
    "service.data_plane.segment_image",
]
REST_ONLY = [
    "service.rest.connection.Body",
    "service.rest.inputs.choose_media",
    "service.rest.routes.read_images",
    "service.rest.inputs.parse_pairs",
    "service.rest.responses.ResponseWriter.check",
    "service.rest.responses.ResponseWriter.write",
]
GRPC_ONLY = [
    "service.grpc.interceptors.read_message",
    "service.grpc.interceptors.carried_metadata",
    "service.grpc.servicer.to_segment_images",
    "service.grpc.converters.refuse_unknown_fields",
    "service.grpc.servicer.from_segment_images",
    "service.grpc.interceptors.call_metadata",
]
INFERENCE = [
    "service.open_inference.inference.find_model",
    "service.open_inference.inference.Options",
    "service.open_inference.inference._stack",
]
INFERENCE_REST = [
    *INFERENCE,
    "service.rest.open_inference.parse_infer",
    "service.rest.open_inference.write_infer",
]
INFERENCE_GRPC = [
    *INFERENCE,
    "service.grpc.open_inference.to_infer",
    "service.grpc.open_inference.from_infer",
]
MAPS_BOTH = [
    "service.data_plane.check_task",
    "service.data_plane.check_map_pixels",
    "service.data_plane.make_map",
]
CLASSES_BOTH = ["service.data_plane.check_choices", "service.data_plane.classify"]
CLASSES_REST = ["service.rest.responses.write_json"]
CLASSES_GRPC = [
    "service.grpc.servicer.to_classify_images",
    "service.grpc.servicer.from_classify_images",
]
VIEWS_BOTH = ["service.data_plane.check_view", "service.data_plane.fit_view"]
VIEWS_REST = ["service.rest.responses.encode_array"]
VIEWS_GRPC = [
    "service.grpc.servicer.to_visualize_features",
    "service.grpc.servicer.from_visualize_features",
]
SLIDE_BOTH = ["service.outputs.masks.segment_windows", "service.data_plane.Windows"]
MAPS_REST = ["service.rest.responses.encode_array"]
MAPS_GRPC = ["service.grpc.servicer.to_estimate_maps", "service.grpc.servicer.from_depth"]


async def over_rest(
    server: Server, image: bytes, route: str = "segment?classes=dog"
) -> tuple[str, str]:
    url = f"http://127.0.0.1:{server.ports['http']}/v1/images:{route}"
    headers = {"Content-Type": "image/png", "X-Request-Id": "asked-by-test"}
    async with httpx.AsyncClient(timeout=LIMIT_S) as client:
        answer = await client.post(url, content=image, headers=headers)
    return str(answer.status_code), f"{answer.headers} {answer.text}"


async def over_grpc(server: Server, image: bytes) -> tuple[str, str]:
    request = segment_pb2.SegmentImagesRequest(
        images=[image_pb2.Image(encoded=image)], classes=[segment_pb2.SegmentClass(name="dog")]
    )
    raw = request.SerializeToString()
    return await asyncio.to_thread(ask_grpc, server, f"{SERVICE}/SegmentImages", raw)


async def infer_over_rest(server: Server, image: bytes) -> tuple[str, str]:
    url = f"http://127.0.0.1:{server.ports['http']}/v2/models/fake/infer"
    data = [base64.b64encode(image).decode()]
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": data}
    async with httpx.AsyncClient(timeout=LIMIT_S) as client:
        answer = await client.post(url, json={"inputs": [tensor]})
    return str(answer.status_code), f"{answer.headers} {answer.text}"


async def infer_over_grpc(server: Server, image: bytes) -> tuple[str, str]:
    request = open_inference_pb2.ModelInferRequest()
    tensor = request.inputs.add(name="image", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(image)
    raw = request.SerializeToString()
    rpc = "/inference.GRPCInferenceService/ModelInfer"
    return await asyncio.to_thread(ask_grpc, server, rpc, raw)


async def slide_over_rest(server: Server, image: bytes) -> tuple[str, str]:
    return await over_rest(server, image, "segment?classes=dog&mode=slide")


async def slide_over_grpc(server: Server, image: bytes) -> tuple[str, str]:
    request = segment_pb2.SegmentImagesRequest(
        images=[image_pb2.Image(encoded=image)],
        classes=[segment_pb2.SegmentClass(name="dog")],
        mode=segment_pb2.SEGMENT_MODE_SLIDE,
    )
    raw = request.SerializeToString()
    return await asyncio.to_thread(ask_grpc, server, f"{SERVICE}/SegmentImages", raw)


async def classes_over_rest(server: Server, image: bytes) -> tuple[str, str]:
    return await over_rest(server, image, "classify?classes=dog")


async def classes_over_grpc(server: Server, image: bytes) -> tuple[str, str]:
    request = classify_pb2.ClassifyImagesRequest(
        images=[image_pb2.Image(encoded=image)], classes=[segment_pb2.SegmentClass(name="dog")]
    )
    raw = request.SerializeToString()
    return await asyncio.to_thread(ask_grpc, server, f"{SERVICE}/ClassifyImages", raw)


async def views_over_rest(server: Server, image: bytes) -> tuple[str, str]:
    return await over_rest(server, image, "features")


async def views_over_grpc(server: Server, image: bytes) -> tuple[str, str]:
    request = features_pb2.VisualizeFeaturesRequest(images=[image_pb2.Image(encoded=image)])
    raw = request.SerializeToString()
    return await asyncio.to_thread(ask_grpc, server, f"{SERVICE}/VisualizeFeatures", raw)


async def depth_over_rest(server: Server, image: bytes) -> tuple[str, str]:
    return await over_rest(server, image, "depth")


async def depth_over_grpc(server: Server, image: bytes) -> tuple[str, str]:
    request = dense_pb2.EstimateDepthRequest(images=[image_pb2.Image(encoded=image)])
    raw = request.SerializeToString()
    return await asyncio.to_thread(ask_grpc, server, f"{SERVICE}/EstimateDepth", raw)


def ask_grpc(server: Server, rpc: str, raw: bytes) -> tuple[str, str]:
    """Status, and everything that the answer says."""
    metadata = (("x-request-id", "asked-by-test"),)
    with grpc.insecure_channel(f"127.0.0.1:{server.ports['grpc']}") as channel:
        call: Any = channel.stream_stream(rpc)(
            iter([raw]),  # type: ignore[arg-type]  # bytes go as they are
            timeout=LIMIT_S,
            metadata=metadata,
        )
        try:
            answers = list(call)
        except grpc.RpcError:
            answers = []
        said = f"{call.details()} {call.trailing_metadata()} {call.debug_error_string()} {answers}"
        return call.code().name, said


Ask = Callable[[Server, bytes], Awaitable[tuple[str, str]]]
OVER_GRPC = {
    *(over_grpc, depth_over_grpc, infer_over_grpc),
    *(slide_over_grpc, classes_over_grpc, views_over_grpc),
}
NEWER = [
    (slide_over_rest, slide_over_grpc, SLIDE_BOTH, [], []),
    (classes_over_rest, classes_over_grpc, CLASSES_BOTH, CLASSES_REST, CLASSES_GRPC),
    (views_over_rest, views_over_grpc, VIEWS_BOTH, VIEWS_REST, VIEWS_GRPC),
]


def plant(monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise RuntimeError(SECRET)

    monkeypatch.setattr(stage, fail)


@pytest.mark.parametrize(
    ("ask", "stage"),
    [
        *[pytest.param(over_rest, stage, id=f"rest {stage}") for stage in BOTH_PROTOCOLS],
        *[pytest.param(over_grpc, stage, id=f"grpc {stage}") for stage in BOTH_PROTOCOLS],
        *[pytest.param(over_rest, stage, id=f"rest {stage}") for stage in REST_ONLY],
        *[pytest.param(over_grpc, stage, id=f"grpc {stage}") for stage in GRPC_ONLY],
        *[pytest.param(depth_over_rest, s, id=f"rest {s}") for s in (*MAPS_BOTH, *MAPS_REST)],
        *[pytest.param(depth_over_grpc, s, id=f"grpc {s}") for s in (*MAPS_BOTH, *MAPS_GRPC)],
        *[pytest.param(r, s, id=f"rest {s}") for r, _, both, own, _ in NEWER for s in both + own],
        *[pytest.param(g, s, id=f"grpc {s}") for _, g, both, _, own in NEWER for s in both + own],
        *[pytest.param(infer_over_rest, s, id=f"V2 rest {s}") for s in INFERENCE_REST],
        *[pytest.param(infer_over_grpc, s, id=f"V2 grpc {s}") for s in INFERENCE_GRPC],
    ],
)
async def test_no_stage_tells_what_broke_in_it(
    serving: Serving,
    encode_image: Encode,
    monkeypatch: pytest.MonkeyPatch,
    ask: Ask,
    stage: str,
) -> None:
    image = encode_image()
    async with serving() as server:
        with monkeypatch.context() as planted:
            plant(planted, stage)
            status, said = await ask(server, image)
        assert SECRET not in said
        assert "RuntimeError" not in said
        # REST counts after it has answered.
        is_late = ask is over_rest and stage == "service.monitoring.telemetry.Telemetry.end"
        assert status == ("200" if is_late else "INTERNAL" if ask in OVER_GRPC else "500")
        after, _ = await ask(server, image)
    assert after in {"200", "OK"}, "the next request is served"


@pytest.mark.parametrize("ask", [over_rest, over_grpc], ids=["rest", "grpc"])
async def test_a_runtime_that_breaks_tells_nothing(
    serving: Serving, encode_image: Encode, runtime: "FakeRuntime", ask: Ask
) -> None:
    async with serving() as server:
        runtime.fault = "raise"
        status, said = await ask(server, encode_image())
        runtime.fault = ""
    assert status in {"500", "INTERNAL"}
    assert "secret of the runtime" not in said
    assert "asked-by-test" in said, "an id to look up"


class Planted:
    """A (de)serializer that breaks."""

    def __call__(self, *_: object) -> Any:
        raise ValueError(SECRET)


@pytest.mark.parametrize("side", ["request_deserializer", "response_serializer"])
async def test_messages_that_cannot_be_read_or_written_tell_nothing(
    serving: Serving, monkeypatch: pytest.MonkeyPatch, encode_image: Encode, side: str
) -> None:
    made = grpc.unary_unary_rpc_method_handler

    def make(behavior: Any, **functions: Any) -> Any:
        return made(behavior, **{**functions, side: Planted()})

    monkeypatch.setattr(grpc, "unary_unary_rpc_method_handler", make)
    request = embed_pb2.EmbedImagesRequest(images=[image_pb2.Image(encoded=encode_image())])
    async with serving() as server:
        monkeypatch.undo()
        rpc, raw = f"{SERVICE}/EmbedImages", request.SerializeToString()
        status, said = await asyncio.to_thread(ask_grpc, server, rpc, raw)
    assert status == "INTERNAL"
    assert SECRET not in said
    assert "ValueError" not in said


@pytest.mark.parametrize(
    "rpc",
    [
        f"/{health.SERVICE_NAME}/Check",
        f"/{health.SERVICE_NAME}/Watch",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ],
)
async def test_malformed_messages_to_open_services_quote_nothing(
    serving: Serving, rpc: str
) -> None:
    async with serving() as server:
        status, said = await asyncio.to_thread(ask_grpc, server, rpc, b"\xff\xff\xff")
    assert status not in {"OK"}
    assert "DecodeError" not in said
    assert "parsing" not in said
