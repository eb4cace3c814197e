"""The Dockerfile's stages; what a built image shows is in `tests/containers/`."""

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest


def instructions(dockerfile: str, name: str) -> list[str]:
    """Arguments of all instructions of one name; continued lines are joined."""
    uncommented = re.sub(r"^\s*#.*\n", "", dockerfile, flags=re.MULTILINE)
    joined = uncommented.replace("\\\n", " ")
    return re.findall(rf"^\s*{name}\s+(.*)$", joined, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def stages(project_root: Path) -> dict[str, str]:
    """Instructions of each stage by its name, after those of its base stages."""
    dockerfile = (project_root / "Dockerfile").read_text(encoding="utf-8")
    found: dict[str, str] = {}
    for text in re.split(r"^FROM ", dockerfile, flags=re.MULTILINE)[1:]:
        first, _, rest = text.partition("\n")
        start, _, name = first.partition(" AS ")
        found[name] = found.get(start, "") + rest
    return found


@pytest.mark.parametrize(("target", "module"), [("serve", "service"), ("train", "training")])
def test_a_shipped_stage_installs_nothing_and_starts_the_projects_program_without_rights(
    project_root: Path, stages: dict[str, str], target: str, module: str
) -> None:
    project = tomllib.loads((project_root / "pyproject.toml").read_text(encoding="utf-8"))
    (entrypoint,) = instructions(stages[target], "ENTRYPOINT")
    assert json.loads(entrypoint)[-2:] == ["-m", module]
    assert instructions(stages[target], "STOPSIGNAL") == ["SIGTERM"]
    assert instructions(stages[target], "USER") == ["10001:10001"]
    arguments = " ".join(instructions(stages[target], "ARG")).split()
    assert f"VERSION={project['project']['version']}" in arguments
    for command in instructions(stages[target], "RUN"):
        assert not {"pip", "apt-get", "gcc"} & set(shlex.split(command))
