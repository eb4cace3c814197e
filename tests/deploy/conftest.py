"""The Kubernetes manifests and the Dockerfile, parsed."""

from pathlib import Path
from typing import Any

import pytest
import yaml

Manifest = dict[str, Any]


@pytest.fixture(scope="session")
def manifests(project_root: Path) -> list[Manifest]:
    """The documents that the kustomization lists, in its order."""
    folder = project_root / "deploy" / "kubernetes"
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))
    texts = [(folder / name).read_text(encoding="utf-8") for name in kustomization["resources"]]
    return [document for text in texts for document in yaml.safe_load_all(text)]


@pytest.fixture(scope="session")
def deployment(manifests: list[Manifest]) -> Manifest:
    """The one Deployment."""
    (found,) = [document for document in manifests if document["kind"] == "Deployment"]
    return found


@pytest.fixture(scope="session")
def kubernetes_service(manifests: list[Manifest]) -> Manifest:
    """The one Service."""
    (found,) = [document for document in manifests if document["kind"] == "Service"]
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
