"""Runs buildah and podman with the tests' settings and a time limit."""

import os
import subprocess
from pathlib import Path

from tests.tools import find_tool, miss

SETTINGS = Path(__file__).with_name("containers.conf")
LIMIT_S = 120.0


class Engine:
    """Builds and runs images; skips or fails the test if this machine cannot.

    Args:
        folder: Working folder of commands; podman's monitor writes a file there after a kill.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        if os.geteuid() != 0:
            miss("building and running images needs root")
        self._podman, self._buildah = find_tool("podman"), find_tool("buildah")
        for name in ("runc", "mmdebstrap", "strip"):
            find_tool(name)
        self.environment = {
            **os.environ,
            "CONTAINERS_CONF": str(SETTINGS),
            "BUILDAH_ISOLATION": "chroot",
            "PODMAN_IGNORE_CGROUPSV1_WARNING": "1",
        }

    def podman(
        self, *arguments: str, check: bool = True, limit_s: float = LIMIT_S, given: str = ""
    ) -> "subprocess.CompletedProcess[str]":
        """Run a podman command; with `check` it must succeed."""
        return self.run([self._podman, *arguments], check=check, limit_s=limit_s, given=given)

    def buildah(self, *arguments: str, limit_s: float) -> "subprocess.CompletedProcess[str]":
        """Run a buildah command, which must succeed."""
        return self.run([self._buildah, *arguments], limit_s=limit_s)

    def run(
        self, command: list[str], *, check: bool = True, limit_s: float = LIMIT_S, given: str = ""
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command in the environment that both need."""
        ended = subprocess.run(
            command,
            cwd=self._folder,
            env=self.environment,
            input=given,
            capture_output=True,
            check=False,
            text=True,
            timeout=limit_s,
        )
        if check:
            told = f"{ended.stdout[-4000:]}\n{ended.stderr[-4000:]}"
            assert ended.returncode == 0, f"{command} ended with {ended.returncode}:\n{told}"
        return ended
