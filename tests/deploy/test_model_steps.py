"""The manifests' init containers run without torch and a hub, as in the serving image.

Another image fetches and converts; here its result is already in the cache.
"""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from model.conversion.cache import PackageCache, content_of, key_of
from model.graphs import Precision
from model.package import BUNDLED, STUDENT_FOLDER
from tests.deploy import kustomizations
from tests.deploy.workloads import Manifest, workloads

LIMIT_S = 120.0
# Python runs this sitecustomize first; these packages are then not found.
WITHOUT_TORCH = """
import sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
missing = {"torch", "torchvision", "transformers", "huggingface_hub", "onnxscript"}
PathFinder.find_spec = lambda name, path=None, target=None: (
    None if name.partition(".")[0] in missing else find(name, path, target)
)
"""


class Steps:
    """Runs commands of containers in a folder in place of the pod's volumes."""

    def __init__(self, folder: Path, project_root: Path) -> None:
        self.folder = folder
        self._root = project_root
        self._path = folder / "bin"
        self._path.mkdir()
        self._write("python", f'exec {sys.executable} "$@"\n')
        slim = folder / "slim"
        slim.mkdir()
        (slim / "sitecustomize.py").write_text(WITHOUT_TORCH, encoding="utf-8")

    def run(self, container: Manifest, **variables: str) -> "subprocess.CompletedProcess[str]":
        """Run the command as a kubelet does, with `$(NAME)` replaced."""
        command = [
            word.replace("$(TIPSERVE_MODEL)", variables["TIPSERVE_MODEL"])
            for word in container["command"]
        ]
        environment = {
            "PATH": f"{self._path}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": f"{self.folder / 'slim'}{os.pathsep}{self._root}",
            "HOME": "/nonexistent",
            **variables,
        }
        return subprocess.run(
            command,
            cwd=self.folder,
            env=environment,
            check=False,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )

    def _write(self, name: str, text: str) -> None:
        path = self._path / name
        path.write_text(f"#!/bin/sh\n{text}", encoding="utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def steps(tmp_path: Path, project_root: Path) -> Steps:
    return Steps(tmp_path, project_root)


def step(name: str, kustomization: str) -> Manifest:
    """The init container of this name."""
    found: list[Manifest] = [
        container
        for workload in workloads(kustomizations.build(kustomization))
        for container in workload.pod["initContainers"]
        if container["name"] == name
    ]
    (one,) = found
    return one


@pytest.fixture
def converted(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A checkpoint, a cache with its packages, and the package with further graphs."""
    source = tmp_path / "student"
    source.mkdir()
    (source / "config.json").write_bytes(b"{}")
    cache = PackageCache(tmp_path / "cache")
    sets: tuple[tuple[Precision, ...], ...] = (("fp32",), ("fp32", "fp16"))
    for precisions in sets:
        folder = cache.folder("student", key_of(content_of(source), None, precisions))
        shutil.copytree(STUDENT_FOLDER, folder)
    return source, cache.root, folder


def test_a_package_is_verified_before_the_server_starts(steps: Steps, tmp_path: Path) -> None:
    container = step("verify-model", "cpu model-volume")
    version = tmp_path / "20261125T201500Z-3fa9c1d2e4b5"
    shutil.copytree(STUDENT_FOLDER, version)
    current = tmp_path / "current"
    current.symlink_to(version.name)
    ended = steps.run(container, TIPSERVE_MODEL=str(current))
    assert ended.returncode == 0, ended.stderr
    assert "every SHA-256 verified" in ended.stdout

    with (version / "onnx" / "vision_model.onnx").open("r+b") as graph:
        graph.write(b"\0")
    ended = steps.run(container, TIPSERVE_MODEL=str(current))
    assert ended.returncode == 1
    assert "onnx/vision_model.onnx" in ended.stderr


def test_a_prepared_package_is_found_without_torch(
    steps: Steps, converted: tuple[Path, Path, Path]
) -> None:
    source, cache, _ = converted
    variables = {"TIPSERVE_MODEL": str(source), "TIPSERVE_CACHE": str(cache)}
    ended = steps.run(step("prepare-model", "cpu released-model"), **variables)
    assert ended.returncode == 0, ended.stderr
    assert Path(ended.stdout.strip()).parent == cache / "packages"

    (source / "config.json").write_bytes(b"[]")
    ended = steps.run(step("prepare-model", "cpu released-model"), **variables)
    assert ended.returncode == 1
    assert "torch" in ended.stderr


@pytest.mark.parametrize("name", ["verify-model", "prepare-model", "build-engines"])
def test_steps_take_several_models_as_the_server_does(
    steps: Steps, converted: tuple[Path, Path, Path], name: str
) -> None:
    source, cache, package = converted
    models = f"bundled,other={STUDENT_FOLDER},converted={source}"
    variables = {"TIPSERVE_MODEL": models, "TIPSERVE_CACHE": str(cache)}
    overlay = "gpu model-volume" if name == "verify-model" else "gpu-released"
    ended = steps.run(step(name, overlay), **variables)
    if name == "verify-model":
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.count("every SHA-256 verified") == 2
    elif name == "prepare-model":
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.splitlines() == [
            str(BUNDLED["bundled"]),
            str(STUDENT_FOLDER),
            str(package),
        ]
    else:
        # This machine has no TensorRT; all models were found before that is missed.
        assert "TensorRT" in ended.stderr.splitlines()[-1]
    broken = variables | {"TIPSERVE_MODEL": f"bundled,other={cache / 'missing'}"}
    ended = steps.run(step(name, overlay), **broken)
    assert ended.returncode == 1
    assert "missing" in ended.stderr
