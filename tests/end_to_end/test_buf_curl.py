"""`buf curl` finds and calls the service by reflection alone."""

import base64
import json
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.tools import find_tool

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Service

LIMIT_S = 60


def buf_curl(service: "Service", method: str, *options: str, **fields: Any) -> str:
    """Output of one call or of `--list-services`."""
    url = f"http://127.0.0.1:{service.ports['grpc']}/{method}".rstrip("/")
    command = [find_tool("buf"), "curl", "--protocol", "grpc", "--http2-prior-knowledge", *options]
    body = ["-d", json.dumps(fields)] if method else []
    done = subprocess.run(
        [*command, *body, url], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_both_contracts_are_found(service: "Service") -> None:
    services = buf_curl(service, "", "--list-services").split()
    assert {"tipserve.v1.EncoderService", "inference.GRPCInferenceService"} <= set(services)
    assert "grpc.health.v1.Health" in services


def test_a_mask_by_our_own_contract(service: "Service", photo: Callable[..., bytes]) -> None:
    answer = json.loads(
        buf_curl(
            service,
            "tipserve.v1.EncoderService/SegmentImages",
            images=[{"encoded": base64.b64encode(photo(size=(90, 60))).decode()}],
            classes=[{"name": "dog"}, {"name": "grass"}],
        )
    )
    labels = answer["segmentations"][0]["labels"]
    assert [int(side) for side in labels["shape"]] == [60, 90]
    assert len(base64.b64decode(labels["data"])) == 2 * 60 * 90


def test_embeddings_by_the_open_inference_protocol(
    service: "Service", photo: Callable[..., bytes]
) -> None:
    model = json.loads(buf_curl(service, "tipserve.v1.EncoderService/GetModel"))["model"]
    image = base64.b64encode(photo()).decode()
    head = {"name": "image", "datatype": "BYTES", "shape": [1]}
    fields = {
        "model_name": model["name"],
        "inputs": [head | {"contents": {"bytes_contents": [image]}}],
        "outputs": [{"name": "cls1"}],
    }
    answer = json.loads(buf_curl(service, "inference.GRPCInferenceService/ModelInfer", **fields))
    assert [int(side) for side in answer["outputs"][0]["shape"]] == [1, model["embedDim"]]
