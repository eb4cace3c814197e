"""Starts, inspects and removes hardened containers."""

import json
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from tests.containers.engine import Engine

LIMIT_S = 120.0
MEMORY = "1g"
HARDENED = (
    "--read-only",
    "--tmpfs=/tmp",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    f"--memory={MEMORY}",
    "--pids-limit=200",
)
# In /proc/PID/status of the image's user without capabilities, with seccomp's filter.
UNPRIVILEGED = {
    "CapEff": "0" * 16,
    "CapBnd": "0" * 16,
    "NoNewPrivs": "1",
    "Seccomp": "2",
    "Uid": "\t".join(["10001"] * 4),
}
WRITE = """
import errno, sys
try:
    open(sys.argv[1], "w").close()
    print("written")
except OSError as error:
    print(errno.errorcode[error.errno])
"""


class Container:
    """A started container."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine
        self.name = name

    def inspect(self, template: str) -> str:
        """Read one value of `podman inspect`."""
        return self._engine.podman("inspect", f"--format={template}", self.name).stdout.strip()

    @property
    def address(self) -> str:
        """Address on the bridge, reachable from the host."""
        return self.inspect("{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}")

    def log(self) -> str:
        """Return everything it printed."""
        ended = self._engine.podman("logs", self.name)
        return ended.stdout + ended.stderr

    def record(self, message: str) -> dict[str, Any] | None:
        """Return the log record with this message, or None."""
        lines = self.log().splitlines()
        # The last line may be incomplete.
        records = (json.loads(x) for x in lines if x.startswith("{") and x.endswith("}"))
        return next((record for record in records if record.get("message") == message), None)

    def wait_for(self, happened: Callable[[], Any], what: str) -> Any:
        """Wait until a condition returns a value; fails if the container ends first."""
        until = time.monotonic() + LIMIT_S
        while not (found := happened()):
            assert time.monotonic() < until, f"no {what}:\n{self.log()}"
            assert self.inspect("{{.State.Running}}") == "true", f"no {what}:\n{self.log()}"
            time.sleep(0.1)
        return found

    def restart(self) -> None:
        """Stop and start it."""
        self._engine.podman("restart", "--time=20", self.name)

    def process_status(self) -> dict[str, str]:
        """Return /proc/PID/status of its first process: capabilities, users, seccomp."""
        text = Path(f"/proc/{self.inspect('{{.State.Pid}}')}/status").read_text(encoding="utf-8")
        return {
            key: value.strip() for key, _, value in (x.partition(":") for x in text.split("\n"))
        }

    def is_healthy(self) -> bool:
        """Whether the image's health check passes; one may time out on a busy machine."""
        return self._engine.podman("healthcheck", "run", self.name, check=False).returncode == 0

    def write(self, path: str) -> str:
        """Try to write a file inside; returns "written" or the errno name."""
        command = ["exec", self.name, "python", "-P", "-c", WRITE, path]
        return self._engine.podman(*command).stdout.strip()


@contextmanager
def running(
    engine: Engine, image: str, *options: str, arguments: tuple[str, ...] = ()
) -> Iterator[Container]:
    """Run a hardened container in the background; later podman options override."""
    name = f"tipserve-test-{secrets.token_hex(4)}"
    try:
        # `--replace` removes what a failed start left: see `Engine.podman`.
        detached = ("run", "--detach", "--pull=never", "--replace", f"--name={name}")
        engine.podman(*detached, *HARDENED, *options, image, *arguments)
        yield Container(engine, name)
    finally:
        engine.podman("rm", "--force", "--ignore", "--time=5", name)


def is_served(url: str) -> bool:
    """Whether a GET returns 200."""
    with suppress(httpx.HTTPError):
        return httpx.get(url, timeout=5.0).status_code == 200
    return False
