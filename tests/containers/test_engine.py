"""Starts that the container runtime itself fails are repeated; nothing else is."""

import subprocess

import pytest

from tests.containers.engine import Engine
from tests.containers.running import running

RESET = "Error: OCI runtime error: runc: runc create failed: read init-p: connection reset by peer"
DENIED = "Error: runc: exec: permission denied: OCI permission denied"


class ScriptedEngine(Engine):
    """Ends each `podman run` as scripted, and lists the commands."""

    def __init__(self, *endings: tuple[int, str]) -> None:
        self._podman = "podman"
        self._endings = list(endings)
        self.commands: list[str] = []

    def run(
        self, command: list[str], *, check: bool = True, limit_s: float = 0.0, given: str = ""
    ) -> "subprocess.CompletedProcess[str]":
        """Record a command; only `podman run` can fail."""
        self.commands.append(command[1])
        code, error = self._endings.pop(0) if command[1] in {"exec", "run"} else (0, "")
        assert code == 0 or not check, error
        return subprocess.CompletedProcess(command, code, "", error)


@pytest.mark.parametrize("num_faults", [0, 1, 2])
def test_a_start_that_the_runtime_fails_is_repeated(num_faults: int) -> None:
    engine = ScriptedEngine(*[(126, RESET)] * num_faults, (0, ""))
    with running(engine, "image"):
        assert engine.commands == ["run"] * (num_faults + 1)


@pytest.mark.parametrize(
    ("endings", "num_starts"),
    [([(126, RESET)] * 3, 3), ([(126, DENIED)], 1), ([(125, RESET)], 1), ([(1, RESET)], 1)],
    ids=["three times", "another error", "podman's fault", "the program's fault"],
)
def test_other_failures_fail_the_test(endings: list[tuple[int, str]], num_starts: int) -> None:
    engine = ScriptedEngine(*endings)
    with pytest.raises(AssertionError), running(engine, "image"):
        pass
    assert engine.commands == ["run"] * num_starts + ["rm"]


def test_only_starts_are_repeated() -> None:
    engine = ScriptedEngine((126, RESET))
    assert engine.podman("exec", "name", "true", check=False).returncode == 126
    assert engine.commands == ["exec"]
