"""Contents of the serving image."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.containers.engine import Engine
from tests.containers.image_build import read_pip_settings

# The first test also builds the image.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

# All layers uncompressed, with base and bundled model.
MAX_IMAGE_BYTES = 450_000_000
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


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def inspected(engine: Engine, image: str) -> dict[str, Any]:
    (found,) = json.loads(engine.podman("image", "inspect", image).stdout)
    assert isinstance(found, dict)
    return found


def test_it_has_neither_torch_nor_training_nor_pip(inventory: dict[str, Any]) -> None:
    assert inventory["modules"] == []
    assert inventory["pips"] == []


def test_it_has_no_compiler_and_nothing_that_downloads(inventory: dict[str, Any]) -> None:
    assert inventory["programs"] == []


def test_it_has_no_caches(inventory: dict[str, Any]) -> None:
    assert inventory["folders"] == dict.fromkeys(UNWANTED["folders"].split(), 0)


def test_it_is_nobody_in_particular(engine: Engine, image: str) -> None:
    assert inspected(engine, image)["Config"]["User"] == "10001:10001"


def test_it_is_small(engine: Engine, image: str) -> None:
    size_bytes = inspected(engine, image)["Size"]
    assert size_bytes < MAX_IMAGE_BYTES, f"{size_bytes / 1e6:.0f} MB"


def test_it_says_what_it_is(engine: Engine, image: str, project_root: Path) -> None:
    project = tomllib.loads((project_root / "pyproject.toml").read_text(encoding="utf-8"))[
        "project"
    ]
    labels = inspected(engine, image)["Config"]["Labels"]
    assert labels[f"{LABEL}title"] == project["name"]
    assert labels[f"{LABEL}version"] == project["version"]
    assert labels[f"{LABEL}licenses"] == project["license"]
    assert re.fullmatch(r"[0-9a-f]{40}", labels[f"{LABEL}revision"])
    assert labels[f"{LABEL}description"]
    assert f"{LABEL}created" in labels
    # Unknown here, so not set.
    assert labels[f"{LABEL}source"] == ""


def test_it_carries_its_licence(inventory: dict[str, Any]) -> None:
    documents = inventory["documents"]
    assert "Apache License" in documents["LICENSE"]
    assert documents["NOTICE"].startswith("tipserve\n")


def test_the_bill_of_materials_lists_what_is_installed(inventory: dict[str, Any]) -> None:
    sbom = json.loads(inventory["documents"]["sbom.cdx.json"])
    assert sbom["bomFormat"] == "CycloneDX"
    components = [*sbom["components"], sbom["metadata"]["component"]]
    listed = {canonical(found["name"]): found["version"] for found in components}
    assert listed == {canonical(name): v for name, v in inventory["installed"].items()}
    assert {"numpy", "openvino", "onnxruntime", "tipserve"} <= listed.keys()
    assert not {"torch", "sympy", "cyclonedx-bom"} & listed.keys()


def test_a_variable_of_pips_counts_more_than_its_file() -> None:
    listed = (
        ":env:.cert='/a.pem'\nglobal.cert='/b.pem'\nglobal.find-links='/c\\n/d'\nglobal.user='no'"
    )
    assert read_pip_settings(listed) == {"cert": "/a.pem", "find-links": "/c\n/d"}
