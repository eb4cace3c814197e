"""Contents of the serving image."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.containers.engine import Engine

# The first test also builds the image.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

# All layers uncompressed, with base and bundled model.
MAX_IMAGE_BYTES = 515_000_000
LABEL = "org.opencontainers.image."
# Forbidden programs, modules and files in folders.
UNWANTED = {
    "programs": "ar as c++ cc clang curl g++ gcc ld make pip pip3 strip wget",
    "modules": "ensurepip pip setuptools sympy torch torchvision training transformers",
    "folders": "/root/.cache /tmp /var/cache/apt /var/cache/tipserve /var/lib/apt/lists",
}


@pytest.fixture(scope="module")
def inventory(engine: Engine, image: str) -> dict[str, Any]:
    """Contents of the image, read as root."""
    program = Path(__file__).with_name("inventory.py").read_text(encoding="utf-8")
    command = ["run", "--rm", "--pull=never", "--network=none", "--user=0", "--entrypoint=python"]
    ended = engine.podman(*command, image, "-P", "-c", program, json.dumps(UNWANTED))
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def test_it_has_no_torch_training_pip_compiler_download_tool_or_cache(
    inventory: dict[str, Any],
) -> None:
    assert (inventory["modules"], inventory["pips"], inventory["programs"]) == ([], [], [])
    assert inventory["folders"] == dict.fromkeys(UNWANTED["folders"].split(), 0)
    assert "Apache License" in inventory["documents"]["LICENSE"]
    assert inventory["documents"]["NOTICE"].startswith("tipserve\n")


def test_it_is_small_its_user_is_not_root_and_its_labels_describe_the_project(
    engine: Engine, image: str, project_root: Path
) -> None:
    (found,) = json.loads(engine.podman("image", "inspect", image).stdout)
    assert found["Config"]["User"] == "10001:10001"
    assert found["Size"] < MAX_IMAGE_BYTES, f"{found['Size'] / 1e6:.0f} MB"
    text = (project_root / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    labels = found["Config"]["Labels"]
    keys = {"title": "name", "version": "version", "licenses": "license"}
    for label, key in keys.items():
        assert labels[f"{LABEL}{label}"] == project[key]
    assert re.fullmatch(r"[0-9a-f]{40}", labels[f"{LABEL}revision"])
