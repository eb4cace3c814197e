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
import pyarrow as pa
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


@pytest.fixture
def folder(tmp_path: Path, photo: Callable[..., bytes]) -> Path:
    """Many small photos and one broken file."""
    path = tmp_path / "photos"
    path.mkdir()
    for index in range(NUM_PHOTOS):
        (path / f"{index:03}.jpg").write_bytes(photo(index, (90 + index, 60)))
    (path / "bad.jpg").write_bytes(b"nonsense")
    return path


def kill_after_the_first_part(process: "subprocess.Popen[str]") -> None:
    """Kill a job and its Ray once it logs a written part."""
    assert process.stderr is not None
    log = []
    with process.stderr as lines:
        for line in lines:
            log.append(line)
            if line.startswith("part "):
                break
        end_session(process.pid)
        assert process.wait(LIMIT_S) == -signal.SIGKILL, "".join(log)


def assert_equal(by_ray: pa.Table, without: pa.Table) -> None:
    """Compare rows; numbers may differ by the rounding of different batches."""
    assert by_ray["key"].to_pylist() == without["key"].to_pylist()
    exact = ["key", "source", "height", "width", "grid_height", "grid_width"]
    assert by_ray.select(exact).equals(without.select(exact))
    for name in ("cls1", "patches"):
        ours, theirs = (table[name].combine_chunks() for table in (by_ray, without))
        while not pa.types.is_floating(ours.type):
            ours, theirs = ours.flatten(), theirs.flatten()
        np.testing.assert_allclose(ours.to_numpy(), theirs.to_numpy(), atol=2e-6)


def test_a_killed_job_continues_to_the_rows_of_a_run_without_ray(
    start: Start, folder: Path, tmp_path: Path, tiny_package: ModelPackage
) -> None:
    command = ["embed", str(folder), f"--model={tiny_package.path}", "--runtime=onnx"]
    command += [f"--part-items={PART_ITEMS}", "--fit=aspect", "--outputs=cls1,patches", "-o"]
    out, here = tmp_path / "out", tmp_path / "here.parquet"
    kill_after_the_first_part(start(*command, str(out), "--ray"))
    num_written = len(list(out.glob("part-*.parquet")))
    assert 0 < num_written < NUM_PHOTOS // PART_ITEMS

    for target in ([str(out), "--ray"], [str(here)]):
        process = start(*command, *target)
        _, log = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 3, log
    assert_equal(pq.read_table(out), pq.read_table(here))
    errors = "".join(file.read_text("utf-8") for file in sorted((out / "_errors").iterdir()))
    assert errors == (tmp_path / "here.errors.jsonl").read_text(encoding="utf-8")
