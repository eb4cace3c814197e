"""The manifests' steps with packages run without torch and a hub, as in the serving image.

Another image fetches and converts; here its result is already in the cache.
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from model.conversion.cache import PackageCache, content_of, key_of
from model.graphs import Precision
from model.package import BUNDLED, STUDENT_FOLDER
from model.publication import CURRENT
from tests import tools
from tests.deploy.kustomizations import build
from tests.deploy.training_steps import PROGRAMS, ROOT, expand
from tests.deploy.workloads import Manifest, workloads

LIMIT_S = 120.0
Run = Callable[..., "subprocess.CompletedProcess[str]"]
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


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a container's command with variables as a kubelet does, without torch."""
    slim = tmp_path / "slim"
    slim.mkdir()
    (slim / "sitecustomize.py").write_text(WITHOUT_TORCH, encoding="utf-8")

    def run_container(container: Manifest, **given: str) -> "subprocess.CompletedProcess[str]":
        program, *words = (expand(word, given) for word in container["command"])
        own = {"PATH": os.environ["PATH"], "HOME": "/", "PYTHONPATH": f"{slim}:{ROOT}"}
        command = (*PROGRAMS[program], *words)
        return tools.run(*command, timeout_s=LIMIT_S, cwd=tmp_path, env=own | given)

    return run_container


def step(name: str, kustomization: str) -> Manifest:
    """The init container of this name."""
    (workload,) = workloads(build(kustomization))
    found = {container["name"]: container for container in workload.containers}
    return dict(found[name])


def test_a_package_of_a_store_is_loaded_whole_or_not_at_all(run: Run, tmp_path: Path) -> None:
    (workload,) = workloads(build("loader"))
    (container,) = workload.containers
    package, models = tmp_path / "student", tmp_path / "models"
    shutil.copytree(STUDENT_FOLDER, package)
    container["command"][-1] = f"--repository={models}"
    ended = run(container, SOURCE=package.as_uri())
    assert ended.returncode == 0, ended.stderr
    assert Path(ended.stdout.strip()) == (models / CURRENT).resolve()

    shutil.rmtree(models)
    with (package / "onnx" / "vision_model.onnx").open("r+b") as graph:
        graph.write(b"\0")
    ended = run(container, SOURCE=package.as_uri())
    assert ended.returncode == 1
    assert "onnx/vision_model.onnx is not the file" in ended.stderr
    assert [path.name for path in models.iterdir()] == [".lock"]


@pytest.mark.parametrize("name", ["prepare-model", "build-engines"])
def test_steps_take_several_models_as_the_server_does(run: Run, tmp_path: Path, name: str) -> None:
    """One of them is a checkpoint, which another image has converted: its package is cached."""
    source, cache = tmp_path / "student", PackageCache(tmp_path / "cache")
    source.mkdir()
    (source / "config.json").write_bytes(b"{}")
    sets: tuple[tuple[Precision, ...], ...] = (("fp32",), ("fp32", "fp16"))
    for precisions in sets:
        package = cache.folder("student", key_of(content_of(source), None, precisions))
        shutil.copytree(STUDENT_FOLDER, package)
    models = f"bundled,other={STUDENT_FOLDER},converted={source}"
    variables = {"TIPSERVE_MODEL": models, "TIPSERVE_CACHE": str(cache.root)}
    ended = run(step(name, "gpu-released"), **variables)
    if name == "prepare-model":
        assert ended.returncode == 0, ended.stderr
        expected = (BUNDLED["bundled"], STUDENT_FOLDER, package)
        assert ended.stdout.splitlines() == list(map(str, expected))
    else:
        # This machine has no TensorRT; all models were found before that is missed.
        assert "TensorRT" in ended.stderr.splitlines()[-1]
    broken = variables | {"TIPSERVE_MODEL": f"bundled,other={cache.root / 'missing'}"}
    ended = run(step(name, "gpu-released"), **broken)
    assert ended.returncode == 1
    assert "missing" in ended.stderr
