"""What kubectl makes of the manifests, built once, and the Dockerfile, parsed."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.deploy.kustomize import Manifest, build, combine

OVERLAYS = ["cpu", "gpu", "dev", "kserve"]


@pytest.fixture(scope="session")
def overlays(project_root: Path) -> dict[str, list[Manifest]]:
    """The documents of each overlay, by its name."""
    folder = project_root / "deploy" / "kubernetes" / "overlays"
    return {name: build(folder / name) for name in OVERLAYS}


@pytest.fixture(scope="session")
def manifests(overlays: dict[str, list[Manifest]]) -> list[Manifest]:
    """The documents of the overlay that most will begin with."""
    return overlays["cpu"]


@pytest.fixture(scope="session")
def combined(
    project_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., list[Manifest]]:
    """Builds an overlay with components, as `combine` takes them; each combination once."""
    deploy = tmp_path_factory.mktemp("combined") / "deploy"
    shutil.copytree(project_root / "deploy", deploy)
    built: dict[tuple[str, ...], list[Manifest]] = {}

    def documents(overlay: str, *components: str) -> list[Manifest]:
        key = (overlay, *components)
        if key not in built:
            built[key] = build(combine(deploy, overlay, *components))
        return built[key]

    return documents


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
