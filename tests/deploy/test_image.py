"""The Dockerfile's promises: a small hardened image that the manifests may rely on."""

import json
import re
import shlex
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest

UID = 10001


def instructions(dockerfile: str, name: str) -> list[str]:
    """Arguments of all instructions of one name, continued lines joined."""
    joined = dockerfile.replace("\\\n", " ")
    return re.findall(rf"^\s*{name}\s+(.*)$", joined, flags=re.MULTILINE)


@pytest.fixture
def final_stage(dockerfile: str) -> str:
    """The text after the last FROM."""
    return re.split(r"^FROM ", dockerfile, flags=re.MULTILINE)[-1]


def test_hadolint_is_content(project_root: Path) -> None:
    command = [str(Path(sysconfig.get_path("scripts")) / "hadolint"), "Dockerfile"]
    result = subprocess.run(command, cwd=project_root, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_the_user_is_the_one_of_the_deployment(final_stage: str, pod: dict[str, Any]) -> None:
    assert instructions(final_stage, "USER") == [f"{UID}:{UID}"]
    assert pod["securityContext"]["runAsUser"] == UID
    assert pod["securityContext"]["runAsGroup"] == UID


def test_the_final_stage_installs_nothing(final_stage: str) -> None:
    for command in instructions(final_stage, "RUN"):
        assert not {"pip", "apt-get", "gcc"} & set(shlex.split(command))


def test_it_starts_and_stops_as_a_process_of_its_own(final_stage: str) -> None:
    (entrypoint,) = instructions(final_stage, "ENTRYPOINT")
    assert json.loads(entrypoint)[-2:] == ["-m", "service"]
    assert instructions(final_stage, "STOPSIGNAL") == ["SIGTERM"]


def test_the_exposed_ports_are_those_of_the_deployment(
    final_stage: str, container: dict[str, Any]
) -> None:
    (exposed,) = instructions(final_stage, "EXPOSE")
    assert [int(port) for port in exposed.split()] == [
        port["containerPort"] for port in container["ports"]
    ]


def test_the_health_check_is_valid_python(final_stage: str) -> None:
    (health,) = instructions(final_stage, "HEALTHCHECK")
    command = json.loads(health[health.index("[") :])
    assert command[:3] == ["python", "-P", "-c"]
    compile(command[3], "healthcheck", "exec")


def test_training_stays_out_of_the_image(project_root: Path, dockerfile: str) -> None:
    assert not [line for line in instructions(dockerfile, "COPY") if "training" in line.split()]
    allowed = (project_root / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in allowed
    assert "!training" not in allowed
