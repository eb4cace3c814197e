"""`grpcurl` finds, describes and calls the service by reflection alone, and prints its errors."""

import base64
import json
import platform
from typing import Any

import pytest

from tests.processes.server import Server, photo
from tests.tools import run

SERVICE = "tipserve.v1.EncoderService"


@pytest.mark.skipif(
    platform.machine() != "x86_64", reason="grpcurl's package has a program for x86_64 only"
)
def test_lists_describes_calls_and_explains_errors(service: Server) -> None:
    def grpcurl(*arguments: str, status: int = 0, body: dict[str, Any] | None = None) -> str:
        data = [] if body is None else ["-d", json.dumps(body)]
        done = run("grpcurl", "-plaintext", *data, service.grpc, *arguments)
        assert done.returncode == status, done
        return done.stdout + done.stderr

    listed = set(grpcurl("list").split())
    assert {SERVICE, "inference.GRPCInferenceService", "grpc.health.v1.Health"} <= listed
    assert "rpc SegmentImages" in grpcurl("describe", SERVICE)
    images = [{"encoded": base64.b64encode(photo(size=(90, 60))).decode()}]
    body = {"images": images, "classes": [{"name": "dog"}, {"name": "grass"}]}
    answer = json.loads(grpcurl(f"{SERVICE}/SegmentImages", body=body))
    labels = answer["segmentations"][0]["labels"]
    assert [int(side) for side in labels["shape"]] == [60, 90]
    health = json.loads(grpcurl("grpc.health.v1.Health/Check", body={"service": SERVICE}))
    assert health == {"status": "SERVING"}
    # grpcurl exits with 64 and the code of the status: 3 is INVALID_ARGUMENT.
    printed = grpcurl(f"{SERVICE}/EmbedTexts", status=64 + 3, body={"texts": []})
    assert "google.rpc.ErrorInfo" in printed
    assert '"reason":"empty_list"' in printed
    assert '"field":"texts"' in printed
