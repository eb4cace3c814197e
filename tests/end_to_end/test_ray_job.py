"""`tipserve embed --ray`: killed in the middle, begun again, and equal to a run without Ray."""

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from model.package import ModelPackage

LIMIT_S = 120.0
NUM_PHOTOS = 120
PART_ITEMS = 3
MARK = "RAY_JOB_TEST"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra bulk"),
]


def marked(mark: str) -> list[int]:
    """Processes that were started with this mark in their environment."""
    found = []
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            if folder.name.isdigit() and mark.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found


@pytest.fixture
def ray_environment() -> Iterator[Mapping[str, str]]:
    """A Ray of its own, of which nothing stays; its folder's name must be short for sockets."""
    mark = f"{MARK}={uuid.uuid4().hex}"
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        name, _, value = mark.partition("=")
        try:
            yield {
                **os.environ,
                name: value,
                "RAY_TMPDIR": folder,
                "RAY_AUTH_MODE": "disabled",
                "RAY_USAGE_STATS_ENABLED": "0",
            }
        finally:
            for process in marked(mark):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)


@pytest.fixture
def folder(tmp_path: Path, photo: Callable[..., bytes]) -> Path:
    """Many small photos and one broken file."""
    path = tmp_path / "photos"
    path.mkdir()
    for index in range(NUM_PHOTOS):
        (path / f"{index:03}.jpg").write_bytes(photo(index, (90 + index, 60)))
    (path / "bad.jpg").write_bytes(b"nonsense")
    return path


def test_a_killed_job_goes_on_to_the_rows_of_one_without_ray(
    project_root: Path,
    folder: Path,
    tmp_path: Path,
    tiny_package: ModelPackage,
    ray_environment: Mapping[str, str],
) -> None:
    command = [sys.executable, "-m", "service.commands", "embed", str(folder), "--runtime=onnx"]
    command += [f"--model={tiny_package.path}", f"--part-items={PART_ITEMS}", "--fit=aspect"]
    command += ["--outputs=cls1,patches", "-o"]
    out, here = tmp_path / "out", tmp_path / "here.parquet"

    process = subprocess.Popen(
        [*command, str(out), "--ray"],
        cwd=project_root,
        env=ray_environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    with process.stderr as lines:
        said = []
        for line in lines:
            said.append(line)
            if line.startswith("part "):
                break
        process.kill()
        assert said[-1].startswith("part "), "".join(said)
        assert process.wait(LIMIT_S) == -signal.SIGKILL
    for one in marked(f"{MARK}={ray_environment[MARK]}"):
        with suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)
    num_written = len(list(out.glob("part-*.parquet")))
    assert 0 < num_written < NUM_PHOTOS // PART_ITEMS, num_written

    for target in ([str(out), "--ray"], [str(here)]):
        ended = subprocess.run(
            [*command, *target],
            cwd=project_root,
            env=ray_environment,
            capture_output=True,
            check=False,
            text=True,
            timeout=LIMIT_S,
        )
        assert ended.returncode == 3, ended.stderr
    by_ray, without = pq.read_table(out), pq.read_table(here)
    assert by_ray["key"].to_pylist() == without["key"].to_pylist()
    sizes = ["key", "source", "height", "width", "grid_height", "grid_width"]
    assert by_ray.select(sizes).equals(without.select(sizes))
    for name in ("cls1", "patches"):
        ours = by_ray[name].combine_chunks().flatten()
        theirs = without[name].combine_chunks().flatten()
        if name == "patches":
            ours, theirs = ours.flatten(), theirs.flatten()
        np.testing.assert_allclose(ours.to_numpy(), theirs.to_numpy(), atol=2e-6)
    errors = "".join(file.read_text("utf-8") for file in sorted((out / "_errors").iterdir()))
    assert errors == (tmp_path / "here.errors.jsonl").read_text(encoding="utf-8")
