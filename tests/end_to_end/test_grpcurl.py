"""`grpcurl` finds, describes and calls the service by reflection alone, and prints its errors."""

import base64
import json
import platform
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from tests.tools import find_tool

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Service

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="grpcurl's package has a program for x86_64 only"
)
LIMIT_S = 60
SERVICE = "tipserve.v1.EncoderService"


def grpcurl(
    service: "Service", *arguments: str, status: int = 0, body: dict[str, Any] | None = None
) -> str:
    """What it prints on either stream; `status` is the expected one."""
    options = ["-plaintext", "-d", json.dumps(body)] if body is not None else ["-plaintext"]
    command = [find_tool("grpcurl"), *options, f"127.0.0.1:{service.ports['grpc']}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    printed = done.stdout + done.stderr
    assert done.returncode == status, printed
    return printed


def test_services_are_listed_and_described(service: "Service") -> None:
    listed = set(grpcurl(service, "list").split())
    assert {SERVICE, "inference.GRPCInferenceService", "grpc.health.v1.Health"} <= listed
    assert "rpc SegmentImages" in grpcurl(service, "describe", SERVICE)


def test_a_mask_and_health(service: "Service", photo: Callable[..., bytes]) -> None:
    images = [{"encoded": base64.b64encode(photo(size=(90, 60))).decode()}]
    body = {"images": images, "classes": [{"name": "dog"}, {"name": "grass"}]}
    answer = json.loads(grpcurl(service, f"{SERVICE}/SegmentImages", body=body))
    labels = answer["segmentations"][0]["labels"]
    assert [int(side) for side in labels["shape"]] == [60, 90]
    health = json.loads(grpcurl(service, "grpc.health.v1.Health/Check", body={"service": SERVICE}))
    assert health == {"status": "SERVING"}


def test_the_details_of_an_error_are_printed(service: "Service") -> None:
    # grpcurl exits with 64 and the code of the status: 3 is INVALID_ARGUMENT.
    printed = grpcurl(service, f"{SERVICE}/EmbedTexts", status=64 + 3, body={"texts": []})
    assert "google.rpc.ErrorInfo" in printed
    assert '"reason":"empty_list"' in printed
    assert '"field":"texts"' in printed
