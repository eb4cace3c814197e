"""The overlay `cpu` as kubectl builds it, its parts, and the Dockerfile."""

from pathlib import Path

import pytest

from tests.deploy import kustomizations
from tests.deploy.workloads import Manifest, of_kind


@pytest.fixture(scope="session")
def manifests() -> list[Manifest]:
    """The documents of the overlay."""
    return kustomizations.build("kubernetes/overlays/cpu")


@pytest.fixture(scope="session")
def pod(manifests: list[Manifest]) -> Manifest:
    """The spec of its Deployment's pods."""
    (deployment,) = of_kind(manifests, "Deployment")
    spec = deployment["spec"]["template"]["spec"]
    assert isinstance(spec, dict)
    return spec


@pytest.fixture(scope="session")
def dockerfile(project_root: Path) -> str:
    """The Dockerfile's text."""
    return (project_root / "Dockerfile").read_text(encoding="utf-8")
