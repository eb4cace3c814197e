"""Builds what lies in `deploy/` as `kubectl apply` would read it, each once in a run of tests.

That is every kustomization, every manifest that none lists, and the chart with the values that it
ships.
"""

import functools
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.workloads import Manifest
from tests.tools import run

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
CHART = DEPLOY / "chart"
# Every part of the chart, under another name and in another namespace than the usual ones.
EVERYTHING: dict[str, Any] = {
    **{
        name: {"enabled": True}
        for name in (
            *("monitoring", "keda", "apiKeys", "tracing", "gateway", "ingress"),
            *("modelVolume", "cacheVolume", "prepareModel", "buildEngines"),
        )
    },
    "tls": {"enabled": True, "clientCa": True},
    "registry": "registry.example.org/us",
    "imagePullSecrets": ["registry"],
}
# What `helm template` gets: the release, files of values, values.
CHARTS: dict[str, tuple[str, list[str], dict[str, Any]]] = {
    "cpu": ("tipserve", [], {}),
    "dev": ("tipserve", ["dev"], {}),
    "gpu": ("tipserve", ["gpu"], {}),
    "production": ("tipserve", ["production"], {}),
    "released": ("tipserve", ["released"], {}),
    "gpu-released": ("tipserve", ["released", "gpu"], {}),
    "everything": ("photos", [], EVERYTHING),
    "everything-gpu": ("photos", ["released", "gpu", "production"], EVERYTHING),
}


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


# Paths below deploy/, and names of `CHARTS`.
ALL = [*_names(), *CHARTS]


def build(name: str) -> list[Manifest]:
    """The documents of one of `ALL`; a caller may change them."""
    return [document for document in yaml.load_all(text_of(name), yaml.CSafeLoader) if document]


@functools.cache
def text_of(name: str) -> str:
    """The same as YAML."""
    if name in CHARTS:
        release, files, values = CHARTS[name]
        return render(values, release, files)
    if name.endswith(".yaml"):
        return (DEPLOY / name).read_text(encoding="utf-8")
    text = (DEPLOY / name / "kustomization.yaml").read_text(encoding="utf-8")
    if "\nkind: Component\n" not in text:
        return _kustomize(DEPLOY / name)
    with tempfile.TemporaryDirectory() as scratch:
        # kustomize accepts only relative paths of other folders.
        here = Path(scratch).resolve()
        kustomization = {
            "resources": [os.path.relpath(DEPLOY / "training" / "chain", here)],
            "components": [os.path.relpath(DEPLOY / name, here)],
        }
        (here / "kustomization.yaml").write_text(yaml.safe_dump(kustomization), encoding="utf-8")
        return _kustomize(here)


def _kustomize(folder: Path) -> str:
    ended = run("kubectl", "kustomize", folder)
    assert ended.returncode == 0, ended.stderr
    # Warnings name deprecated fields and those without effect.
    assert not ended.stderr, ended.stderr
    return ended.stdout


def render(
    values: dict[str, Any], release: str = "tipserve", files: list[str] | None = None, *options: str
) -> str:
    """The chart's YAML with these values over those files, after Helm's own checks."""
    given = [f"--values={CHART / f'values-{name}.yaml'}" for name in files or []]
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "values.yaml"
        file.write_text(yaml.safe_dump(values), encoding="utf-8")
        given += [f"--values={file}", "--namespace=vision", *options]
        if not options:
            linted = run("helm", "lint", "--strict", CHART, *given)
            assert linted.returncode == 0, linted.stdout + linted.stderr
        ended = run("helm", "template", release, CHART, *given)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
