"""Builds what lies in `deploy/` as `kubectl apply` would read it, each once in a run of tests."""

import functools
import os
import re
import subprocess
import tempfile
from pathlib import Path

import yaml

from tests.deploy.workloads import Manifest
from tests.tools import find_tool

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
BASE = DEPLOY / "kubernetes" / "base"
_OVERLAYS = {path.name for path in (DEPLOY / "kubernetes" / "overlays").iterdir()}
LIMIT_S = 60.0


def _folders() -> list[str]:
    folders = (path.parent for path in sorted(DEPLOY.rglob("kustomization.yaml")))
    return [folder.relative_to(DEPLOY).as_posix() for folder in folders]


def _loose_files() -> list[str]:
    """Manifests that no kustomization beside them names: they are applied by themselves."""
    found = []
    for path in sorted(DEPLOY.rglob("*.yaml")):
        kustomization = path.with_name("kustomization.yaml")
        listed = kustomization.read_text(encoding="utf-8") if kustomization.exists() else ""
        is_manifest = re.search(r"^apiVersion:", path.read_text(encoding="utf-8"), re.MULTILINE)
        if path != kustomization and is_manifest and path.name not in listed:
            found.append(path.relative_to(DEPLOY).as_posix())
    return found


# Relative to deploy/. A component is built on the base.
NAMES = _folders() + _loose_files()

# What users will put together: an overlay, and components on top of it.
_USUAL = "monitoring keda api-keys tls tracing"
COMBINATIONS = [
    f"cpu {_USUAL} model-volume",
    "cpu monitoring hpa released-model cache-volume",
    f"gpu {_USUAL} model-volume",
    "dev released-model",
]

ALL = NAMES + COMBINATIONS


def is_component(name: str) -> bool:
    """Whether it changes other manifests and is none by itself."""
    text = (DEPLOY / name / "kustomization.yaml").read_text(encoding="utf-8")
    return "\nkind: Component\n" in text


def build(name: str) -> list[Manifest]:
    """The documents of one kustomization; every call gives fresh ones, to change as one likes.

    Args:
        name: One of `NAMES`, or an overlay and components as `COMBINATIONS` has them.
    """
    return [document for document in yaml.load_all(text_of(name), yaml.CSafeLoader) if document]


@functools.cache
def text_of(name: str) -> str:
    """The same as text: what `kubectl kustomize` prints, or the file as it is."""
    if name.endswith(".yaml"):
        return (DEPLOY / name).read_text(encoding="utf-8")
    if name.partition(" ")[0] in _OVERLAYS:
        overlay, *components = name.split()
        folders = [DEPLOY / "kubernetes" / "components" / one for one in components]
        return build_together(DEPLOY / "kubernetes" / "overlays" / overlay, folders)
    if is_component(name):
        return build_together(BASE, [DEPLOY / name])
    return _kustomize(DEPLOY / name)


def build_together(base: Path, components: list[Path]) -> str:
    """What a base and components make, as YAML."""
    with tempfile.TemporaryDirectory() as scratch:
        # kustomize wants to be told of other folders by relative paths.
        here = Path(scratch).resolve()
        kustomization = {
            "resources": [os.path.relpath(base, here)],
            "components": [os.path.relpath(component, here) for component in components],
        }
        text = yaml.safe_dump(kustomization)
        (here / "kustomization.yaml").write_text(text, encoding="utf-8")
        return _kustomize(here)


def _kustomize(folder: Path) -> str:
    ended = subprocess.run(
        [find_tool("kubectl"), "kustomize", str(folder)],
        capture_output=True,
        check=False,
        text=True,
        timeout=LIMIT_S,
    )
    assert ended.returncode == 0, ended.stderr
    # Warnings say that something is deprecated, or that it does nothing.
    assert not ended.stderr, ended.stderr
    return ended.stdout
