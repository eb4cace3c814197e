"""What kubectl makes of the manifests, built once, and the Dockerfile, parsed."""

from pathlib import Path

import pytest

from tests.deploy import kustomizations
from tests.deploy.workloads import Manifest

OVERLAYS = ["cpu", "gpu", "gpu-released", "dev", "kserve", "production"]


@pytest.fixture(scope="session")
def overlays() -> dict[str, list[Manifest]]:
    """The documents of each overlay, by its name."""
    return {name: kustomizations.build(f"kubernetes/overlays/{name}") for name in OVERLAYS}


@pytest.fixture(scope="session")
def manifests(overlays: dict[str, list[Manifest]]) -> list[Manifest]:
    """The documents of the overlay that most will begin with."""
    return overlays["cpu"]


@pytest.fixture(scope="session")
def deployment(manifests: list[Manifest]) -> Manifest:
    """The one Deployment."""
    (found,) = [document for document in manifests if document["kind"] == "Deployment"]
    return found


@pytest.fixture(scope="session")
def pod(deployment: Manifest) -> Manifest:
    """The pod's spec."""
    spec = deployment["spec"]["template"]["spec"]
    assert isinstance(spec, dict)
    return spec


@pytest.fixture(scope="session")
def container(pod: Manifest) -> Manifest:
    """The one container."""
    (found,) = pod["containers"]
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="session")
def dockerfile(project_root: Path) -> str:
    """The Dockerfile's text."""
    return (project_root / "Dockerfile").read_text(encoding="utf-8")
