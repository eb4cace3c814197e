"""The manifests' steps with packages run without torch and a hub, as in the serving image.

Another image fetches and converts; here its result is already in the cache.
"""

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from model.conversion.cache import PackageCache, content_of, key_of
from model.graphs import Precision
from model.package import BUNDLED, STUDENT_FOLDER
from model.publication import CURRENT
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
            re.sub(r"\$\((\w+)\)", lambda match: variables[match[1]], word)
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


def test_a_package_of_a_store_is_loaded_whole_or_not_at_all(steps: Steps, tmp_path: Path) -> None:
    (workload,) = workloads(kustomizations.build("loader"))
    (container,) = workload.containers
    package, models = tmp_path / "student", tmp_path / "models"
    shutil.copytree(STUDENT_FOLDER, package)
    container["command"][-1] = f"--repository={models}"
    ended = steps.run(container, SOURCE=package.as_uri())
    assert ended.returncode == 0, ended.stderr
    assert Path(ended.stdout.strip()) == (models / CURRENT).resolve()

    shutil.rmtree(models)
    with (package / "onnx" / "vision_model.onnx").open("r+b") as graph:
        graph.write(b"\0")
    ended = steps.run(container, SOURCE=package.as_uri())
    assert ended.returncode == 1
    assert "onnx/vision_model.onnx is not the file" in ended.stderr
    assert [path.name for path in models.iterdir()] == [".lock"]


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


@pytest.mark.parametrize("name", ["prepare-model", "build-engines"])
def test_steps_take_several_models_as_the_server_does(
    steps: Steps, converted: tuple[Path, Path, Path], name: str
) -> None:
    source, cache, package = converted
    models = f"bundled,other={STUDENT_FOLDER},converted={source}"
    variables = {"TIPSERVE_MODEL": models, "TIPSERVE_CACHE": str(cache)}
    ended = steps.run(step(name, "gpu-released"), **variables)
    if name == "prepare-model":
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
    ended = steps.run(step(name, "gpu-released"), **broken)
    assert ended.returncode == 1
    assert "missing" in ended.stderr
