"""REST and gRPC report the same runtime, reason and parity of a model."""

from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from model.manifest import Manifest, ParityEntry, ParityLimits
from model.runtime.base import UnusableRuntimeError
from model.runtime.choice import RuntimeChoice
from service.grpc.converters import from_model
from service.messages import ModelInfo
from service.models import loading
from service.models.loading import request_limits
from service.rest.response_schemas import model_card

SHOWN = {
    "file": "onnx/vision_model.onnx",
    "precision": "bf16",
    "reference": "torch",
    "max_abs_diff": 0.25,
    "min_cosine_patches": 0.5,
    "mask_agreement": 1.0,
}
FIELDS = ("runtime", "precision", "device", "runtime_reason", "package_digest", "parity")


def test_both_protocols_describe_a_model_alike(manifest: Manifest, make_settings: Any) -> None:
    limits = ParityLimits(min_mask_agreement=0.995)
    more = {"runtime": "openvino", "sizes": [(1, 28, 28)], "limits": limits}
    info = ModelInfo(
        manifest=manifest,
        runtime="openvino",
        precision="bf16",
        device="cpu",
        runtime_reason="openvino on the CPU in bf16: the fastest that is proven here.",
        limits=request_limits(make_settings()),
        parity=(ParityEntry.model_validate({**SHOWN, **more}),),
    )
    card = model_card(info).model_dump()
    message = MessageToDict(from_model(info), preserving_proto_field_name=True)
    assert {name: card[name] for name in FIELDS} == {name: message[name] for name in FIELDS}
    assert card["parity"] == [{**SHOWN, "passed": True}]


def test_the_runtime_is_chosen_by_the_settings_and_workers_share_no_gpu(
    manifest: Manifest, make_settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def choose(_: object, request: Any, __: object) -> RuntimeChoice:
        asked.append(request)
        return RuntimeChoice(runtime="onnx", precision="fp32", device="gpu", reason="")

    monkeypatch.setattr(loading, "choose_runtime", choose)
    settings = make_settings(runtime="onnx", precision="fp16", device="gpu")
    package: Any = SimpleNamespace(manifest=manifest)
    assert loading.choose(package, settings).device == "gpu"
    (request,) = asked
    assert (request.runtime, request.precision, request.device) == ("onnx", "fp16", "gpu")
    with pytest.raises(UnusableRuntimeError, match="2 workers would each hold a CUDA context"):
        loading.choose(package, make_settings(workers=2, lanes=2, pool_threads=2))
