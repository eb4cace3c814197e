"""Builds the kustomizations of `deploy/` as `kubectl apply -k` would, into documents."""

import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.tools import find_tool

Manifest = dict[str, Any]

LIMIT_S = 60.0


class BuildError(Exception):
    """A kustomization cannot be built; the message is kubectl's own."""


def build(folder: Path) -> list[Manifest]:
    """The documents of one kustomization.

    Raises:
        BuildError: kubectl refuses it.
    """
    ended = subprocess.run(
        [find_tool("kubectl"), "kustomize", str(folder)],
        check=False,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    if ended.returncode != 0:
        raise BuildError(ended.stderr)
    return [document for document in yaml.safe_load_all(ended.stdout) if document]


def combine(deploy: Path, overlay: str, *components: str) -> Path:
    """Write an overlay as a user would, from one of ours and some components; gives its folder.

    Args:
        deploy: A copy of `deploy/`, which it is written into.
        overlay: One of `kubernetes/overlays/`.
        components: Of `kubernetes/components/`, in order.
    """
    folder = deploy / "kubernetes" / "overlays" / "-".join(("with", overlay, *components))
    folder.mkdir()
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [f"../{overlay}"],
        "components": [f"../../components/{name}" for name in components],
    }
    text = yaml.safe_dump(kustomization)
    (folder / "kustomization.yaml").write_text(text, encoding="utf-8")
    return folder
