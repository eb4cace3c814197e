"""Volumes of a small cluster: shards, a captioner, a teacher, evaluation data. Runs its steps."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.package import STUDENT_FOLDER
from tests.deploy.training_steps import Places, Step
from tests.training.tiny_paligemma import write_paligemma
from training.__main__ import main
from training.data.folder import DataFolder

NUM_IMAGES = 8
# A step takes seconds; imports on a busy machine take longer.
LIMIT_S = 560.0
# The kernel gives connections ports of this range.
PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, data_folder: DataFolder) -> Places:
    """Shards with one caption each, a tiny PaliGemma, the bundled student as teacher."""
    root = tmp_path_factory.mktemp("volumes")
    for name in ("data", "runs", "models", "config"):
        (root / name).mkdir()
    images = root / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for number in range(NUM_IMAGES):
        pixels = np.tile(rng.integers(0, 255, (6, 7, 3), dtype=np.uint8), (20, 20, 1))
        Image.fromarray(pixels).save(images / f"{number}.png")
        (images / f"{number}.txt").write_text(f"a plain wall, number {number}", encoding="utf-8")
    assert main(["shards", "folder", str(images), "--output", str(root / "data/shards")]) == 0
    write_paligemma(root / "data/paligemma")
    shutil.copytree(STUDENT_FOLDER, root / "data/teacher")
    shutil.copytree(data_folder.path, root / "data/evaluation")
    return Places(root=root, port=free_port())


def free_port() -> int:
    """A port without a listener, outside the range of outgoing connections."""
    first_of_connections = int(PORT_RANGE.read_text(encoding="ascii").split()[0])
    for port in range(first_of_connections - 1 - os.getpid() % 1000, 1024, -1):
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
    raise AssertionError("all ports are taken")


def in_float32(step: Step) -> Step:
    """Train in float32: some CPUs have no instructions for bfloat16."""
    return replace(step, command=[*step.command, "--set=precision=float32"])


class Running:
    """Runs steps, also several at a time, and ends those that are left."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[str]] = []

    def start(self, step: Step) -> "subprocess.Popen[str]":
        """Start a step."""
        process = step.start()
        self._processes.append(process)
        return process

    def run(self, *steps: Step) -> list[tuple[int, str]]:
        """Run steps together; returns exit status and output of each."""
        processes = [self.start(step) for step in steps]
        said = [process.communicate(timeout=LIMIT_S)[0] for process in processes]
        return [(p.returncode, text) for p, text in zip(processes, said, strict=True)]

    def end(self) -> None:
        """Send SIGTERM, and SIGKILL after a while."""
        left = [process for process in self._processes if process.poll() is None]
        for process in left:
            process.terminate()
        for process in left:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """Runs steps."""
    steps = Running()
    yield steps
    steps.end()
