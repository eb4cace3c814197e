"""The metrics of a live server pass Prometheus's own linter."""

import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.tools import find_tool
from tipserve_client import InvalidRequest

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Service

LIMIT_S = 60.0


def test_promtool_reports_no_problem(service: "Service", photo: Callable[..., bytes]) -> None:
    command = [find_tool("promtool"), "check", "metrics"]
    fields = {"images": [photo()], "classes": ["dog"]}
    service.over_rest("segment", fields)
    with pytest.raises(InvalidRequest):
        service.over_grpc("embed_images", {"images": [b"no image"]})
    text = service.metrics()
    result = subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    for series in ("process_cpu_seconds_total", "process_resident_memory_bytes"):
        assert f"\n{series} " in text
