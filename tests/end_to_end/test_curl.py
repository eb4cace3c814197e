"""Every `curl` line of docs/api.md, unchanged, against the running program."""

import io
import json
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load

from model.package import ModelPackage
from tests.tools import find_tool

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Service

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = re.compile(r"^# (?P<answer>.+)\n(?P<line>curl -.+)$", re.MULTILINE)
EXAMPLES = EXAMPLE.findall((ROOT / "docs" / "api.md").read_text(encoding="utf-8"))
ADDRESS = "localhost:8000"
LIMIT_S = 60


@pytest.fixture(scope="module")
def dense_service(
    run_service: Callable[..., Any], dense_package: ModelPackage
) -> Iterator["Service"]:
    """Service with a package that supports every route."""
    with run_service(packages=(dense_package,)) as running:
        yield running


def read(name: str, content: bytes) -> int:
    """Count the arrays, entries or images of a file; fails if it is damaged."""
    match Path(name).suffix:
        case ".json":
            body = json.loads(content)
            return len(body["data"])
        case ".npy":
            return len(np.load(io.BytesIO(content), allow_pickle=False))
        case ".safetensors":
            return len(load(content))
        case ".png":
            Image.open(io.BytesIO(content)).load()
            return 1
    raise AssertionError(f"{name} has an unknown type")


@pytest.mark.parametrize(("answer", "line"), EXAMPLES, ids=[answer for answer, _ in EXAMPLES])
def test_an_example_gives_the_file_that_it_names(
    dense_service: "Service", tmp_path: Path, answer: str, line: str
) -> None:
    assert line.count(ADDRESS) == 1
    command = shlex.split(line.replace(ADDRESS, f"127.0.0.1:{dense_service.ports['http']}"))
    command[0] = find_tool("curl")
    written = tmp_path / command[-1]
    command[-1] = str(written)
    extra = ["--silent", "--show-error", "--fail-with-body"]
    done = subprocess.run(
        [*command, *extra], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, (done.stderr, written.read_text(errors="replace")[:500])
    assert read(written.name, written.read_bytes()) > 0


def test_the_examples_have_every_route_and_every_format() -> None:
    lines = " ".join(line for _, line in EXAMPLES)
    routes = ("embed", "segment", "classify", "features", "depth", "normals")
    for route in ("/v1/texts:embed", *(f"/v1/images:{route}" for route in routes)):
        assert route in lines
    kinds = {Path(line.split()[-1]).suffix for _, line in EXAMPLES}
    assert kinds == {".png", ".npy", ".safetensors", ".json"}
