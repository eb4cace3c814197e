"""The Dockerfile's promises: small hardened images that the manifests may rely on."""

import json
import re
import shlex
import subprocess
import sysconfig
import tomllib
from pathlib import Path
from typing import Any

import pytest

UID = 10001
TARGETS = ("serve", "train")


def instructions(dockerfile: str, name: str) -> list[str]:
    """Arguments of all instructions of one name, continued lines joined."""
    uncommented = re.sub(r"^\s*#.*\n", "", dockerfile, flags=re.MULTILINE)
    joined = uncommented.replace("\\\n", " ")
    return re.findall(rf"^\s*{name}\s+(.*)$", joined, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def stages(dockerfile: str) -> dict[str, str]:
    """Each stage's instructions by its name, those of the stages that it begins with first."""
    found: dict[str, str] = {}
    for text in re.split(r"^FROM ", dockerfile, flags=re.MULTILINE)[1:]:
        first, _, rest = text.partition("\n")
        start, _, name = first.partition(" AS ")
        found[name] = found.get(start, "") + rest
    return found


def test_hadolint_is_content(project_root: Path) -> None:
    command = [str(Path(sysconfig.get_path("scripts")) / "hadolint"), "Dockerfile"]
    result = subprocess.run(command, cwd=project_root, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_the_serving_image_is_the_one_built_by_default(stages: dict[str, str]) -> None:
    assert list(stages)[-1] == "serve"


@pytest.mark.parametrize("target", TARGETS)
def test_the_user_is_the_one_of_the_deployment(
    stages: dict[str, str], target: str, pod: dict[str, Any]
) -> None:
    assert instructions(stages[target], "USER") == [f"{UID}:{UID}"]
    assert pod["securityContext"]["runAsUser"] == UID
    assert pod["securityContext"]["runAsGroup"] == UID


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_shipped_installs_nothing(stages: dict[str, str], target: str) -> None:
    for command in instructions(stages[target], "RUN"):
        assert not {"pip", "apt-get", "gcc"} & set(shlex.split(command))


@pytest.mark.parametrize(("target", "module"), [("serve", "service"), ("train", "training")])
def test_it_starts_and_stops_as_a_process_of_its_own(
    stages: dict[str, str], target: str, module: str
) -> None:
    (entrypoint,) = instructions(stages[target], "ENTRYPOINT")
    assert json.loads(entrypoint)[-2:] == ["-m", module]
    assert instructions(stages[target], "STOPSIGNAL") == ["SIGTERM"]


def test_the_exposed_ports_are_those_of_the_deployment(
    stages: dict[str, str], container: dict[str, Any]
) -> None:
    (exposed,) = instructions(stages["serve"], "EXPOSE")
    assert [int(port) for port in exposed.split()] == [
        port["containerPort"] for port in container["ports"]
    ]


def test_the_health_check_is_valid_python(stages: dict[str, str]) -> None:
    (health,) = instructions(stages["serve"], "HEALTHCHECK")
    command = json.loads(health[health.index("[") :])
    assert command[:3] == ["python", "-P", "-c"]
    compile(command[3], "healthcheck", "exec")


@pytest.mark.parametrize("target", TARGETS)
def test_the_version_is_the_distributions(
    project_root: Path, stages: dict[str, str], target: str
) -> None:
    project = tomllib.loads((project_root / "pyproject.toml").read_text(encoding="utf-8"))
    arguments = " ".join(instructions(stages[target], "ARG")).split()
    assert f"VERSION={project['project']['version']}" in arguments


@pytest.mark.parametrize(
    ("stage", "room"), [("build-serve", "training"), ("build-train", "service")]
)
def test_serving_and_training_stay_apart(stages: dict[str, str], stage: str, room: str) -> None:
    assert not [line for line in instructions(stages[stage], "COPY") if room in line.split()]


def test_only_what_is_named_reaches_the_build(project_root: Path) -> None:
    allowed = (project_root / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in allowed
    assert not {"!tests", "!data", "!deploy"} & set(allowed)
