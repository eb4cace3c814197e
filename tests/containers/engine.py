"""Runs buildah and podman with the tests' settings and a time limit."""

import os
import subprocess
from pathlib import Path

from tests.tools import find_tool, miss

SETTINGS = Path(__file__).with_name("containers.conf")
LIMIT_S = 120.0
RESTARTS = 2


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
        """Run a podman command; with `check` it must succeed.

        `podman run` is repeated if the runtime fails before the container's own process runs. On a
        busy machine runc did: "read init-p: connection reset by peer".
        """
        command = [self._podman, *arguments]
        for _ in range(RESTARTS if arguments[0] == "run" else 0):
            ended = self.run(command, check=False, limit_s=limit_s, given=given)
            if ended.returncode != 126 or "OCI runtime error" not in ended.stderr:
                return checked(ended) if check else ended
        return self.run(command, check=check, limit_s=limit_s, given=given)

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
        return checked(ended) if check else ended


def checked(ended: "subprocess.CompletedProcess[str]") -> "subprocess.CompletedProcess[str]":
    """Return an ended command, which must have succeeded."""
    told = f"{ended.stdout[-4000:]}\n{ended.stderr[-4000:]}"
    assert ended.returncode == 0, f"{ended.args} ended with {ended.returncode}:\n{told}"
    return ended
