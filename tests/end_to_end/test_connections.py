"""No program connects to anything but this machine, unless it is asked to.

strace sees what Python's audit events do not: native libraries, and processes that programs start.
"""

import os
import re
import sys
from pathlib import Path

import pytest

from tests.processes.server import ROOT
from tests.tools import run

# Ends hangs; a traced program on a busy machine takes minutes.
LIMIT_S = 500
ADDRESS = re.compile(r'sa_family=AF_INET6?,.*?inet_(?:addr\(|pton\(AF_INET6, )"([^"]+)"')
LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
STUDENT = str(ROOT / "model" / "bundled_student")
TRAIN = ["-m", "training", "distill", "--teacher", STUDENT, "--images", "images"]
TRAIN += ["--steps", "2", "--batch", "2", "--set", "data.crops.num_local=1"]
# Those of processors without instructions for bfloat16.
TRAIN += ["--set", "precision=float32", "--set", "optim.optimizer=adamw"]
PROGRAMS = {
    # Starts a server, and asks every route, gRPC, the client and a command with a server.
    "serve": [str(ROOT / "scripts" / "request_every_route.py")],
    "embed": ["-m", "tipserve_cli", "embed", "images", "-o", "embeddings.parquet"],
    "train": TRAIN,
}
CONTROL = "import socket; socket.socket(socket.{0}, socket.SOCK_DGRAM).connect(('{1}', 9))"


def addresses(folder: Path, arguments: list[str]) -> set[str]:
    """Run a Python program in a folder; returns the IP addresses that it sent to."""
    log = folder / "calls"
    watch = ["strace", "-f", "--seccomp-bpf", "-qqq", "-e", "signal=none"]
    watch += ["-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o", str(log)]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "clients" / "python")])
    # Some telemetry is off where CI is set, so the program does not see that variable.
    environment = {"HOME": str(folder), "PATH": os.environ["PATH"], "PYTHONPATH": paths}
    command = (*watch, sys.executable, *arguments)
    done = run(*command, cwd=folder, env=environment, timeout_s=LIMIT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return set(ADDRESS.findall(log.read_text(encoding="utf-8")))


@pytest.mark.timeout(LIMIT_S + 60)
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_connects_to_this_machine_only(tmp_path: Path, name: str) -> None:
    (tmp_path / "images").mkdir()
    for path in (ROOT / "model" / "parity" / "images" / "gate").glob("*.jpg"):
        (tmp_path / "images" / path.name).symlink_to(path)
    assert addresses(tmp_path, PROGRAMS[name]) <= LOOPBACK


@pytest.mark.parametrize(("family", "address"), [("AF_INET", "127.0.0.1"), ("AF_INET6", "::1")])
def test_the_watch_sees_a_connection(tmp_path: Path, family: str, address: str) -> None:
    assert addresses(tmp_path, ["-c", CONTROL.format(family, address)]) == {address}
