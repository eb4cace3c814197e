"""The metrics of a live server pass Prometheus's own linter."""

import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.tools import find_tool

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Service

LIMIT_S = 60.0


@pytest.fixture(scope="session")
def promtool() -> str:
    """The tool's path."""
    return find_tool("promtool")


def check(promtool: str, text: str) -> "subprocess.CompletedProcess[str]":
    command = [promtool, "check", "metrics"]
    return subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


def test_promtool_finds_nothing_to_complain_of(
    promtool: str, service: "Service", photo: Callable[..., bytes]
) -> None:
    fields = {"images": [photo()], "classes": ["dog"]}
    assert service.over_rest("segment_images", fields).status == "200"
    assert service.over_grpc("embed_images", {"images": [b"no image"]}).status != "OK"
    text = service.metrics()
    result = check(promtool, text)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    for series in ("process_cpu_seconds_total", "process_resident_memory_bytes"):
        assert f"\n{series} " in text


def test_promtool_would_find_it(promtool: str) -> None:
    bad = "# HELP tipserve_waits Waits.\n# TYPE tipserve_waits counter\ntipserve_waits 1\n"
    result = check(promtool, bad)
    assert result.returncode != 0
    assert "_total" in result.stdout + result.stderr
