"""The wheels of the extras for GPUs fit each other; scripts/check_gpu_wheels.py downloads them."""

import re
import runpy

import pytest

from tests.deploy.kustomizations import DEPLOY
from tests.deploy.test_release import pins

ROOT = DEPLOY.parent
EXTRAS = ("gpu", "gpu-cuda12")
BINDINGS = "tensorrt.so"


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_wheels_that_images_install_were_checked(extra: str) -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "check_gpu_wheels.py"))
    text = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    found = re.search(rf"^\[{re.escape(extra)}\]\n(.*?)^(?:\[|```)", text, re.MULTILINE | re.DOTALL)
    assert found, f"docs/gpu.md has no output of the script for {extra}"
    output = found[1]
    checked = set(re.findall(r"^([\w.-]+==\S+)", output, re.MULTILINE))
    locked = {
        name for name in script["locked"](extra) if not re.match(r"tensorrt.*\d(-libs)?==", name)
    }
    assert checked == locked, "run scripts/check_gpu_wheels.py, and put its output into docs/gpu.md"
    assert "every needed library is there" in output
    # TensorRT is of the version that its bindings load.
    version = pins(ROOT / "requirements" / f"{extra},otel.txt")
    (tensorrt,) = (version[name] for name in version if re.fullmatch(r"tensorrt-cu\d+", name))
    (needed,) = re.findall(rf"^{re.escape(BINDINGS)} needs (.*)$", output, re.MULTILINE)
    assert f"libnvinfer.so.{tensorrt.major}" in needed.split(", ")
