"""Builds what lies in `deploy/` as `kubectl apply` would read it, each once in a run of tests."""

import functools
import os
import re
import tempfile
from pathlib import Path

import yaml

from tests.deploy.workloads import Manifest
from tests.tools import run

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
KUBERNETES = DEPLOY / "kubernetes"


def _names() -> list[str]:
    """Folders with a kustomization, and manifests that the one beside them does not list."""
    names = []
    for path in sorted(set(DEPLOY.rglob("*.yaml")) - set(DEPLOY.glob("chart/**/*.yaml"))):
        text = path.read_text(encoding="utf-8")
        kustomization = path.with_name("kustomization.yaml")
        if path == kustomization:
            names.append(path.parent.relative_to(DEPLOY).as_posix())
        elif re.search(r"^kind:", text, re.MULTILINE) and not (
            kustomization.exists() and path.name in kustomization.read_text(encoding="utf-8")
        ):
            names.append(path.relative_to(DEPLOY).as_posix())
    return names


_USUAL = "monitoring keda api-keys tls tracing gateway"
# An overlay and components on top of it.
COMBINATIONS = [
    f"cpu {_USUAL} model-volume",
    "cpu monitoring hpa released-model cache-volume ingress registry",
    f"gpu {_USUAL} model-volume",
    "dev released-model",
    "gpu model-image",
]
# Paths below deploy/, and combinations. A component by itself is built on an overlay, the front on
# the base.
ALL = [*_names(), *COMBINATIONS]


def build(name: str) -> list[Manifest]:
    """The documents of one of `ALL`; a caller may change them."""
    return [document for document in yaml.load_all(_text_of(name), yaml.CSafeLoader) if document]


@functools.cache
def _text_of(name: str) -> str:
    if name.endswith(".yaml"):
        return (DEPLOY / name).read_text(encoding="utf-8")
    first, *components = name.split()
    overlay = KUBERNETES / "overlays" / first
    if overlay.is_dir():
        return build_together(overlay, [KUBERNETES / "components" / one for one in components])
    text = (DEPLOY / name / "kustomization.yaml").read_text(encoding="utf-8")
    if "\nkind: Component\n" in text:
        base = KUBERNETES / ("base" if name.endswith("/front") else "overlays/cpu")
        base = DEPLOY / "training" / "chain" if "training/" in name else base
        return build_together(base, [DEPLOY / name])
    return _kustomize(DEPLOY / name)


def build_together(base: Path, components: list[Path]) -> str:
    """The YAML of a base with components."""
    with tempfile.TemporaryDirectory() as scratch:
        # kustomize accepts only relative paths of other folders.
        here = Path(scratch).resolve()
        kustomization = {
            "resources": [os.path.relpath(base, here)],
            "components": [os.path.relpath(component, here) for component in components],
        }
        text = yaml.safe_dump(kustomization)
        (here / "kustomization.yaml").write_text(text, encoding="utf-8")
        return _kustomize(here)


def _kustomize(folder: Path) -> str:
    ended = run("kubectl", "kustomize", folder)
    assert ended.returncode == 0, ended.stderr
    # Warnings name deprecated fields and those without effect.
    assert not ended.stderr, ended.stderr
    return ended.stdout
