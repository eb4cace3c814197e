"""`tipserve embed --ray`: killed, restarted, and equal to a run without Ray."""

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from model.package import ModelPackage

LIMIT_S = 120.0
NUM_PHOTOS = 120
PART_ITEMS = 3

Start = Callable[..., "subprocess.Popen[str]"]

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs the extra bulk"
)


def end_session(session: int) -> None:
    """Kill every process of a session; Ray starts many, and some outlive their parents."""
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            # Fields after the name in parentheses: state, parent, group, session.
            fields = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            if folder.name.isdigit() and int(fields[3]) == session:
                os.kill(int(folder.name), signal.SIGKILL)


@pytest.fixture
def start(project_root: Path) -> Iterator[Start]:
    """Start a command in its own session with its own Ray; both are removed afterwards."""
    started: list[subprocess.Popen[str]] = []
    # Not in the test's folder: its path is too long for sockets.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        ray = {"RAY_TMPDIR": folder, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}

        def begin(*command: str) -> "subprocess.Popen[str]":
            process = subprocess.Popen(
                [sys.executable, "-m", "tipserve_cli", *command],
                cwd=project_root,
                env={**os.environ, **ray},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            started.append(process)
            return process

        try:
            yield begin
        finally:
            for process in started:
                end_session(process.pid)
                process.wait(LIMIT_S)


def test_a_killed_job_continues_to_the_rows_of_a_run_without_ray(
    start: Start, photo: Callable[..., bytes], tmp_path: Path, tiny_package: ModelPackage
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(NUM_PHOTOS):
        (folder / f"{index:03}.jpg").write_bytes(photo(index, (90 + index, 60)))
    (folder / "bad.jpg").write_bytes(b"nonsense")
    command = ["embed", str(folder), f"--model={tiny_package.path}", "--runtime=onnx"]
    command += [f"--part-items={PART_ITEMS}", "--fit=aspect", "--outputs=cls1,patches", "-o"]
    out, here = tmp_path / "out", tmp_path / "here.parquet"

    process = start(*command, str(out), "--ray")
    assert process.stderr is not None
    with process.stderr as lines:
        log: list[str] = []
        while not (log and log[-1].startswith("image ")):
            log.append(lines.readline())
            assert log[-1], "".join(log)
        end_session(process.pid)
        assert process.wait(LIMIT_S) == -signal.SIGKILL, "".join(log)
    assert 0 < len(list(out.glob("part-*.parquet"))) < NUM_PHOTOS // PART_ITEMS

    for target in ([str(out), "--ray"], [str(here)]):
        process = start(*command, *target)
        _, said = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 3, said
    by_ray, without = pq.read_table(out), pq.read_table(here)
    exact = ["key", "source", "height", "width", "grid_height", "grid_width"]
    assert by_ray.select(exact).equals(without.select(exact))
    # Numbers may differ by the rounding of different batches.
    for name in ("cls1", "patches"):
        for ours, theirs in zip(by_ray[name].to_pylist(), without[name].to_pylist(), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-6)
    errors = "".join(file.read_text("utf-8") for file in sorted((out / "_errors").iterdir()))
    assert errors == (tmp_path / "here.errors.jsonl").read_text(encoding="utf-8")
